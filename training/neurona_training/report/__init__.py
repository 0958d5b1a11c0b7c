"""The page that a run leaves about its model, with pictures: OUT/NAME/report/report.html.

One file with everything in it. page.py puts it together of pictures.py and details.py; what
each picture shows stands in a file of its own: curves.py, answers.py (right and wrong),
mistakes.py, weights.py. style.py has what they share, and story.py what they tell of.
"""

from neurona_training.report.page import page
from neurona_training.report.story import Story

__all__ = ["Story", "page"]
