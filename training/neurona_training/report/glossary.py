"""The words of the page, each explained once, where it first stands."""

from __future__ import annotations

from collections.abc import Iterable

# For students of an introductory course: one sentence, without other words of this list where
# that is possible.
GLOSSARY = {
    "accuracy": "part of the rows whose predicted class is the right one",
    "AUC": "area under the ROC curve: 1 for a perfect order of the rows, 0.5 for guessing",
    "baseline": "a simple rule or method that the network has to beat",
    "batch": "rows that are shown together before the weights change once",
    "confidence": "the largest probability of an answer",
    "confusion matrix": "how many rows of each true class were given each predicted class",
    "convolution": "the same small kernel is moved over the whole picture, so that a feature is "
    "found wherever it is",
    "C-cell": "responds if a nearby S-cell of its plane does, and so tolerates small shifts",
    "decision border": "where the answer changes from one class to another",
    "ECE": "expected calibration error: how far confidence and accuracy are apart, on average",
    "embedding": "a learned list of numbers that stands for a character or a category",
    "epoch": "one pass over all training rows",
    "feature importance": "how much a network's answers depend on a column",
    "feature map": "the answers of one kernel at every place of the picture",
    "gate": "numbers from 0 (closed) to 1 (open) by which the network itself multiplies what "
    "passes, and so decides what to keep",
    "Grad-CAM": "a way to show which parts of a picture raised the score of a class, by gradients "
    "of the score with respect to the maps",
    "gradient": "the direction in which the loss grows fastest; training goes the other way",
    "kernel": "a small grid of weights that answers to one pattern",
    "label": "the name of a class",
    "layer": "units that work side by side on what the layer before them gives",
    "learning rate": "how far the weights move in one step; too far overshoots, too little takes "
    "forever",
    "loss": "the number that training makes small: how wrong the predictions are",
    "map": "a grid of numbers, one for each place of the picture",
    "matrix": "numbers in rows and columns",
    "memory cell": "the part of an LSTM's state that gates protect, so that it can keep something "
    "over many steps",
    "NLL": "negative log-likelihood: small where true classes have large probabilities, large "
    "where the network is sure and wrong",
    "overfitting": "the network learns training rows by heart: it becomes better on them and "
    "worse on others",
    "parameter": "a number that training changes: the weights and biases",
    "pixel": "one point of a picture",
    "pooling": "neighbouring numbers become one, their mean or the largest, so that maps shrink "
    "and small shifts do not matter",
    "precision": "part of the alarms that are right",
    "preferred stimulus": "the picture to which a cell responds most",
    "recall": "part of a class's rows that are found",
    "receptive field": "the part of the input that can change a number in a deeper layer",
    "residual": "the predicted value less the true one",
    "RMSE": "root of the mean squared error, in the unit of the values: a typical size of an "
    "error, in which large ones count more",
    "ROC": "receiver operating characteristic: rows found against false alarms, for every "
    "threshold",
    "S-cell": "responds to the pattern that its plane has learned",
    "sample": "one of the numbers, thousands a second, of which sound is made",
    "score": "what the network computes for a class before it becomes a probability",
    "sensitivity": "recall of the class to be found",
    "sequence": "values that follow each other in time",
    "specificity": "part of the other class's rows that raise no alarm",
    "standard deviation": "how far values usually are from their mean",
    "state": "the numbers by which a recurrent network remembers what it has read",
    "temperature": "a number by which all scores are divided, so that a network is less sure of "
    "itself (above 1) or surer (below)",
    "test row": "a row that was kept away from training and from every choice, to measure at the "
    "end",
    "threshold": "the probability from which on a row counts as the class to be found",
    "training row": "a row from which the weights are learned",
    "unit": "a model of a nerve cell: a weighted sum of its inputs, then a function of it",
    "validation row": "a row that is not trained on, and by which the best epoch is chosen",
    "weight": "how strongly one input counts in a unit's sum; negative ones inhibit",
}


class FirstUse:
    """Gives the explanation of each word once: to the section that uses it first."""

    def __init__(self) -> None:
        self._explained: set[str] = set()

    def explain(self, words: Iterable[str]) -> list[tuple[str, str]]:
        """Words that no section before has explained, with their explanations.

        Raises:
            KeyError: a word is not in the glossary.
        """
        fresh = [word for word in dict.fromkeys(words) if word not in self._explained]
        self._explained.update(fresh)
        return [(word, GLOSSARY[word]) for word in fresh]
