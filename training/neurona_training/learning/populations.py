"""Whether validation and test rows look like rows of one population.

What is fitted on validation rows (the best epoch, the temperature of calibration.py) holds for
rows like them. Published test sets are often from elsewhere: other hospitals, writers, years.
Three tests look for that, each with a p-value that holds for rows divided at random:

label shares    the fraction of each class (of a regression: the values that are to be predicted)
inputs          whether a classifier can tell test rows from validation rows of the same class
errors          whether the network is right as often as it is sure, on both alike

Rows of a time series overlap, so that these p-values would not hold; there the values beyond
the range of training are counted instead.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from neurona_training.architectures.input_layers import column_spreads
from neurona_training.data import Dataset, Split
from neurona_training.learning.evaluation import predict, softmax

LEVEL = 0.01  # fraction of random divisions that are reported as different populations, at most

_MAX_ROWS = 1000  # of each part, drawn at random
_MAX_SIDE = 16  # pixels; larger images are averaged down to this before they are told apart
_PERMUTATIONS = 1999  # random divisions for a p-value
_TREES = 50
_SEED = 2017


@dataclass(frozen=True)
class PopulationTest:
    """One test.

    Args:
        name: what is compared.
        p_value: how often rows of one population differ as much by chance.
        finding: in words.
    """

    name: str
    p_value: float
    finding: str


@dataclass(frozen=True)
class Populations:
    """All tests of a data set; none for a time series.

    Args:
        tests: in the order of the module's docstring.
        beyond_range: fraction of the test rows whose targets are outside the range of those for
            training, for a time series.
    """

    tests: tuple[PopulationTest, ...]
    beyond_range: float = 0.0

    @property
    def p_value(self) -> float:
        """The smallest one, for as many tests as there are (C. Bonferroni, 1936)."""
        if not self.tests:
            return 1.0
        return min(1.0, len(self.tests) * min(test.p_value for test in self.tests))

    @property
    def differ(self) -> bool:
        """Whether the rows look like different populations."""
        return self.p_value < LEVEL

    @property
    def summary(self) -> str:
        """One or more sentences for readers."""
        if not self.tests:
            share = f"{100 * self.beyond_range:.0f} %"
            return f"{share} of the test values are outside the range of the training values."
        if not self.differ:
            return "Validation and test rows look like one population."
        limit = LEVEL / len(self.tests)
        findings = [
            f"{test.finding} ({format_p_value(test.p_value)})"
            for test in self.tests
            if test.p_value < limit
        ]
        return f"Validation and test rows look like different populations: {'; '.join(findings)}."


def format_p_value(p_value: float) -> str:
    """Formats `p 0.24` or `p < 0.001`."""
    return "p < 0.001" if p_value < 0.001 else f"p {p_value:.2g}"


def compare_populations(network: nn.Module, data: Dataset) -> Populations:
    """Compares validation and test rows.

    Args:
        network: trained and calibrated, takes the inputs of `data`.
        data: up to 1000 rows of each part are compared; the shares of the classes are those of
            all rows.
    """
    if data.is_series:
        targets = data.train.targets
        outside = (data.test.targets < targets.min(0)) | (data.test.targets > targets.max(0))
        return Populations((), float(outside.any(axis=1).mean()))
    generator = np.random.default_rng(_SEED)
    parts = [_sample_rows(part, generator) for part in (data.validation, data.test)]
    width = len(data.labels) or len(data.values)  # bounds of intervals may follow
    outputs = [predict(network, part).numpy()[:, :width].astype(np.float64) for part in parts]
    features = [
        np.concatenate([summarise_inputs(data, part), values], axis=1)
        for part, values in zip(parts, outputs, strict=True)
    ]
    true = [part.targets for part in parts]
    if data.is_classification:
        labels = _compare_label_shares(data, generator)
        strata = true
        errors = _compare_confidence([softmax(values) for values in outputs], true, generator)
    else:
        labels = _compare_targets(true)
        strata = [np.zeros(len(part), np.int64) for part in true]
        # Several values may have units of different sizes.
        several = len(data.values) > 1
        spreads = column_spreads(data.train.targets) if several else np.ones(1)
        errors = _compare_errors(outputs, true, spreads)
    inputs = _compare_inputs(features, strata, data.labels, generator)
    return Populations((labels, inputs, errors))


def summarise_inputs(data: Dataset, split: Split) -> NDArray[np.float64]:
    """Some numbers about each row, float64 of shape (rows, numbers).

    Columns as they are; images as at most 16 x 16 pixels; of sequences the length, and mean,
    standard deviation, first and last step of each channel; of texts how often each character
    occurs.
    """
    inputs = np.asarray(split.inputs)
    extra = [np.asarray(array, np.float64).reshape(len(inputs), -1) for array in split.extra_inputs]
    if data.kind == "images":
        return np.concatenate([_shrink_images(data, inputs), *extra], axis=1)
    if data.kind == "rows":
        return np.concatenate([inputs.reshape(len(inputs), -1), *extra], axis=1)
    lengths = split.lengths
    if lengths is None:
        lengths = np.full(len(inputs), inputs.shape[1], np.int32)
    count = len(data.input.categories) + 1  # one for unknown characters
    rows: list[NDArray[Any]] = []
    for row, length in zip(inputs, lengths, strict=True):
        steps = row[:length]
        if data.input.categories:
            numbers = [np.bincount(steps.ravel().astype(np.int64), minlength=count)]
        else:
            steps = steps.reshape(length, -1).astype(np.float64)
            numbers = [steps.mean(axis=0), steps.std(axis=0), steps[0], steps[-1]]
        rows.append(np.concatenate([[length], *numbers]))
    return np.concatenate([np.stack(rows), *extra], axis=1)


def _shrink_images(data: Dataset, images: NDArray[Any]) -> NDArray[np.float64]:
    """Averages square blocks of pixels; a rest at the lower and right edges is left out."""
    height_axis, width_axis = (data.input.axes.index(name) for name in ("height", "width"))
    images = np.moveaxis(images, (height_axis, width_axis), (-2, -1))
    height, width = images.shape[-2:]
    block = -(-max(height, width) // _MAX_SIDE)
    if block > 1 and min(height, width) >= block:
        down, across = height // block, width // block
        images = images[..., : down * block, : across * block]
        shape = (*images.shape[:-2], down, block, across, block)
        images = images.reshape(shape).mean(axis=(-3, -1))
    return images.reshape(len(images), -1).astype(np.float64)


def _sample_rows(split: Split, generator: np.random.Generator) -> Split:
    if len(split) <= _MAX_ROWS:
        return split
    rows = np.sort(generator.choice(len(split), _MAX_ROWS, replace=False))
    return replace(
        split,
        inputs=split.inputs[rows],
        targets=split.targets[rows],
        lengths=None if split.lengths is None else split.lengths[rows],
        extra_inputs=tuple(array[rows] for array in split.extra_inputs),
    )


def _compare_label_shares(data: Dataset, generator: np.random.Generator) -> PopulationTest:
    """Chi-squared statistic of the counts, its p-value by random divisions of the same rows."""
    classes = len(data.labels)
    validation, test = (
        np.bincount(part.targets, minlength=classes) for part in (data.validation, data.test)
    )
    total, rows = validation + test, validation.sum()
    expected = total * rows / total.sum()

    def statistic(counts: NDArray[np.int64]) -> NDArray[np.float64]:
        terms: NDArray[np.float64] = (counts - expected) ** 2 / np.maximum(expected, 1e-9)
        summed: NDArray[np.float64] = terms.sum(axis=-1)
        return summed

    by_chance = generator.multivariate_hypergeometric(total, rows, _PERMUTATIONS, method="count")
    # A rounding error above, so that equal tables are equal.
    as_far = (statistic(by_chance) >= statistic(validation) * (1 - 1e-9)).sum()
    p_value = float((1 + as_far) / (1 + _PERMUTATIONS))
    shares = validation / rows, test / test.sum()
    furthest = int(np.abs(shares[0] - shares[1]).argmax())
    return PopulationTest(
        "label shares",
        p_value,
        f"{data.labels[furthest]!r} is {shares[0][furthest]:.0%} of the validation rows and "
        f"{shares[1][furthest]:.0%} of the test rows".replace("%", " %"),
    )


def _compare_targets(targets: list[NDArray[Any]]) -> PopulationTest:
    from scipy.stats import ks_2samp

    columns = list(zip(*(part.T for part in targets), strict=True))
    p_values = [float(ks_2samp(*column).pvalue) for column in columns]
    medians = [np.median(part) for part in columns[int(np.argmin(p_values))]]
    return PopulationTest(
        "targets",
        min(1.0, len(columns) * min(p_values)),
        f"the median of the values to predict is {medians[0]:.4g} in the validation rows and "
        f"{medians[1]:.4g} in the test rows",
    )


def _compare_inputs(
    features: list[NDArray[np.float64]],
    strata: list[NDArray[np.int64]],
    labels: tuple[str, ...],
    generator: np.random.Generator,
) -> PopulationTest:
    """Classifier two-sample test (D. Lopez-Paz and M. Oquab, ICLR 2017), class by class.

    A forest learns from one half of the rows and scores the other, then the other way round. The
    p-value is that of scores of rows on which the forest has not learned, so it needs no
    assumption on the forest: Wilcoxon's rank sum, added over the classes (P. van Elteren, 1960).
    """
    from scipy.stats import norm
    from sklearn.ensemble import RandomForestClassifier

    rows, stratum = np.concatenate(features), np.concatenate(strata)
    is_test = np.repeat([False, True], [len(part) for part in features])
    half = np.empty(len(rows), np.int64)
    for part in (False, True):  # both halves have as many of either
        half[is_test == part] = generator.permutation((is_test == part).sum()) % 2
    sums = [_RankSums.empty(len(labels) or 1) for _ in (0, 1)]
    for number, rank_sums in enumerate(sums):
        learned = half == number
        forest = RandomForestClassifier(
            _TREES, min_samples_leaf=5, class_weight="balanced", random_state=_SEED
        )
        forest.fit(rows[learned], is_test[learned])
        scores = forest.predict_proba(rows[~learned])[:, -1]
        rank_sums.add(scores, is_test[~learned], stratum[~learned])
    p_values = [float(norm.sf(rank_sums.z)) for rank_sums in sums]
    area = np.mean([rank_sums.area for rank_sums in sums])
    finding = (
        f"a classifier tells a test row from a validation row in {100 * area:.0f} % of all pairs"
    )
    if labels:
        by_class = np.mean([rank_sums.areas for rank_sums in sums], axis=0)
        most = int(by_class.argmax())
        finding += f" of one class, most of {labels[most]!r} with {100 * by_class[most]:.0f} %"
    finding += ", where guessing has 50 %"
    return PopulationTest("inputs", min(1.0, 2 * min(p_values)), finding)


@dataclass
class _RankSums:
    """Wilcoxon's rank sums of scores, class by class.

    excess, variance: of the sum of the test rows' ranks over what is expected, (classes,).
    pairs: of a test row and a validation row, (classes,).
    weights: van Elteren's, those of the largest power, (classes,).
    """

    excess: NDArray[np.float64]
    variance: NDArray[np.float64]
    pairs: NDArray[np.float64]
    weights: NDArray[np.float64]

    @classmethod
    def empty(cls, classes: int) -> _RankSums:
        """Returns sums over no rows."""
        return cls(*(np.zeros(classes) for _ in range(4)))

    def add(
        self, scores: NDArray[np.float64], is_test: NDArray[np.bool_], stratum: NDArray[np.int64]
    ) -> None:
        """Adds each class of these rows; one without rows of either part counts nothing."""
        from scipy.stats import rankdata

        for one in np.unique(stratum):
            within = stratum == one
            ranks, test = rankdata(scores[within]), is_test[within]
            size, tests = len(test), int(test.sum())
            if tests in (0, size):
                continue
            self.excess[one] = ranks[test].sum() - tests * (size + 1) / 2
            # Of the ranks as they are, so that ties are accounted for.
            self.variance[one] = tests * (size - tests) / size * ranks.var(ddof=1)
            self.pairs[one] = tests * (size - tests)
            self.weights[one] = 1 / (size + 1)

    @property
    def z(self) -> float:
        """All classes together, standardised."""
        variance = (self.weights**2 * self.variance).sum()
        return float((self.weights * self.excess).sum() / np.sqrt(variance)) if variance else 0.0

    @property
    def area(self) -> float:
        """Area under the ROC curve, over all pairs of one class."""
        return 0.5 + float(self.excess.sum() / max(self.pairs.sum(), 1))

    @property
    def areas(self) -> NDArray[np.float64]:
        """The same for each class."""
        areas: NDArray[np.float64] = 0.5 + self.excess / np.maximum(self.pairs, 1)
        return areas


def _compare_confidence(
    probabilities: list[NDArray[np.float64]],
    targets: list[NDArray[Any]],
    generator: np.random.Generator,
) -> PopulationTest:
    """How far the network is surer than it is right, on validation and on test rows."""
    confidence = [part.max(axis=1) for part in probabilities]
    is_right = [
        part.argmax(axis=1) == true for part, true in zip(probabilities, targets, strict=True)
    ]
    excess = [sure - right for sure, right in zip(confidence, is_right, strict=True)]
    words = [
        f"{100 * sure.mean():.1f} % sure and {100 * right.mean():.1f} % right on {name} rows"
        for name, sure, right in zip(("validation", "test"), confidence, is_right, strict=True)
    ]
    p_value = _permutation_test(excess, generator)
    return PopulationTest("errors", p_value, f"the network is {' but '.join(words)}")


def _permutation_test(parts: list[NDArray[np.float64]], generator: np.random.Generator) -> float:
    """The p-value of the difference between two means, by random divisions of the same rows."""
    rows = np.concatenate(parts)
    rows -= rows.mean()
    first = len(parts[0])
    as_far = 1
    for _ in range(_PERMUTATIONS):
        # With the mean of all at 0, the sum of one part says how far both means are apart.
        as_far += abs(generator.permutation(rows)[:first].sum()) >= abs(rows[:first].sum()) - 1e-9
    return float(as_far / (1 + _PERMUTATIONS))


def _compare_errors(
    outputs: list[NDArray[np.float64]], targets: list[NDArray[Any]], units: NDArray[np.float64]
) -> PopulationTest:
    from scipy.stats import mannwhitneyu

    errors = [
        (np.abs(values - true) / units).mean(axis=1)
        for values, true in zip(outputs, targets, strict=True)
    ]
    unit = " standard deviations" if len(units) > 1 else ""
    medians = [np.median(part) for part in errors]
    return PopulationTest(
        "errors",
        float(mannwhitneyu(*errors).pvalue),
        f"the median error is {medians[0]:.4g}{unit} on validation rows and {medians[1]:.4g}{unit} "
        "on test rows",
    )
