"""Every data set that has a name, joined from one table for each kind.

Nothing heavy is imported until a data set is loaded.
"""

from neurona_training.data.catalogue import images, rows, sequences
from neurona_training.data.catalogue.source import Options, Source

__all__ = ["SOURCES", "Options", "Source"]

SOURCES = {source.name: source for source in (*rows.SOURCES, *images.SOURCES, *sequences.SOURCES)}
