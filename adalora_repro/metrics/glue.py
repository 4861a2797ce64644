"""The figures of GLUE: functions of (labels, predictions), arrays of equal length and not empty; fractions of 1.

Where a figure is undefined (a correlation with a constant, F1 without any positive) it is 0: no better than chance.
scikit-learn and scipy are imported when a figure is computed.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from numpy.typing import NDArray


def accuracy(labels: NDArray[Any], predicted: NDArray[Any]) -> float:
    """The share of equal pairs."""
    return float((labels == predicted).mean())


def f1(labels: NDArray[Any], predicted: NDArray[Any]) -> float:
    """2 TP / (2 TP + FP + FN) of class 1."""
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predicted, pos_label=1, zero_division=0.0))


def matthews_correlation(labels: NDArray[Any], predicted: NDArray[Any]) -> float:
    """Phi coefficient of two classes, its generalization for more; 0 for constant labels or predictions."""
    from sklearn.metrics import matthews_corrcoef

    if _constant(labels) or _constant(predicted):
        return 0.0
    return float(matthews_corrcoef(labels, predicted))


def pearson(labels: NDArray[Any], predicted: NDArray[Any]) -> float:
    """Linear correlation in float64; 0 for constant labels or predictions."""
    from scipy.stats import pearsonr

    return _correlation(pearsonr, labels, predicted)


def spearman(labels: NDArray[Any], predicted: NDArray[Any]) -> float:
    """Rank correlation, ties at their mean rank; 0 for constant labels or predictions."""
    from scipy.stats import spearmanr

    return _correlation(spearmanr, labels, predicted)


def corr(labels: NDArray[Any], predicted: NDArray[Any]) -> float:
    """Mean of Pearson and Spearman, the paper's figure for STS-B."""
    return (pearson(labels, predicted) + spearman(labels, predicted)) / 2


def _correlation(measure: Callable[..., Any], labels: NDArray[Any], predicted: NDArray[Any]) -> float:
    if _constant(labels) or _constant(predicted):
        return 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # almost constant predictions: the figure is what it is
        value = float(measure(labels.astype("float64"), predicted.astype("float64")).statistic)
    return value if math.isfinite(value) else 0.0


def _constant(values: NDArray[Any]) -> bool:
    return bool((values == values[0]).all())


METRICS: dict[str, Callable[[NDArray[Any], NDArray[Any]], float]] = {
    function.__name__: function for function in (accuracy, f1, matthews_correlation, pearson, spearman, corr)
}
#: figures of scores; the others are of classes
OF_SCORES = ("pearson", "spearman", "corr")
#: the figures that the paper reports of each task
TASKS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("mnli", "sst2", "qnli", "rte"), ("accuracy",)),
    **dict.fromkeys(("qqp", "mrpc"), ("accuracy", "f1")),
    "cola": ("matthews_correlation",),
    "stsb": OF_SCORES,
}
