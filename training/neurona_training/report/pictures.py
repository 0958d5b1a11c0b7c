"""The sections of the page that are pictures, each with a line on how to read it."""

from __future__ import annotations

from html import escape

from neurona_training.report.answers import MOST_CLASSES, against, confusion, forecast, recall
from neurona_training.report.curves import curves
from neurona_training.report.mistakes import SHOWN, gallery, listed
from neurona_training.report.story import Story
from neurona_training.report.style import embedded
from neurona_training.report.weights import weights


def training(story: Story) -> str:
    if not story.fitted.history:
        return ""
    return embedded(
        curves(story), f"loss and metric after each epoch; best: {story.fitted.best_epoch}"
    )


def right_and_wrong(story: Story) -> str:
    if not story.data.is_classification:
        pictures = [embedded(against(story), "predicted against true values, and residuals")]
        if story.is_series:
            pictures.insert(0, embedded(forecast(story), "the series and its forecast"))
        return "".join(pictures)
    recalled = embedded(recall(story), "the part of each class that was found")
    if len(story.data.labels) > MOST_CLASSES:
        return f'<p class="quiet">The {MOST_CLASSES} classes found least.</p>{recalled}'
    says = "Each row a true class: blue where it was found, orange what it was taken for."
    return f'<p class="quiet">{says}</p>{embedded(confusion(story), says)}{recalled}'


def mistakes(story: Story) -> str:
    drawn = gallery(story)
    if story.data.is_classification:
        wrong = int((story.answered.argmax(axis=1) != story.data.test.targets).sum())
        says = f"{wrong:,} of {len(story.data.test):,} test rows are wrong"
        says += f"; the {SHOWN} surest of them" if wrong > SHOWN else ""
        says += "; after them the right ones that were least sure" if wrong < SHOWN else ""
        says += "."
        if drawn is not None:
            says += " The bars are probabilities, blue for the true class."
    else:
        says = f"The {min(SHOWN, len(story.data.test))} test rows that it missed by most."
        says += " Black is true, orange predicted, grey what it was given." * story.is_series
    content = embedded(drawn, says) if drawn is not None else listed(story)
    return f'<p class="quiet">{escape(says)}</p>{content}'


def looked_for(story: Story) -> str:
    found = weights(story)
    if found is None:
        return ""
    drawn, says = found
    return f'<p class="quiet">{escape(says)}.</p>{embedded(drawn, says)}'
