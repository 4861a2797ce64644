"""The figures of GLUE: functions of (labels, predictions), each (…, examples) and not empty, -> (…); fractions of 1.

Where a figure is undefined (a correlation with a constant, F1 without any positive) it is 0: no better than chance.
numpy and scipy are imported when a figure is computed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def accuracy(labels: Any, predicted: Any) -> Any:
    """The share of equal pairs."""
    return (labels == predicted).mean(-1)


def f1(labels: Any, predicted: Any) -> Any:
    """2 TP / (2 TP + FP + FN) of class 1."""
    positive, claimed = labels == 1, predicted == 1
    return _ratio(2.0 * (positive & claimed).sum(-1), positive.sum(-1) + claimed.sum(-1))


def matthews_correlation(labels: Any, predicted: Any) -> Any:
    """Gorodkin's R_K, for two classes the phi coefficient.

    (c s - Σ_k t_k p_k) / sqrt((s² - Σ_k t_k²) (s² - Σ_k p_k²)), c right ones of s, t_k and p_k true and predicted k.
    """
    import numpy as np

    s, c = float(labels.shape[-1]), (labels == predicted).sum(-1)
    classes = np.unique(np.concatenate([labels.ravel(), predicted.ravel()]))
    true, claimed = (np.stack([(values == k).sum(-1) for k in classes]).astype(float) for values in (labels, predicted))
    spread = (s**2 - (true**2).sum(0)) * (s**2 - (claimed**2).sum(0))
    return _ratio(c * s - (true * claimed).sum(0), np.sqrt(spread))


def pearson(labels: Any, predicted: Any) -> Any:
    """Linear correlation in float64."""
    import numpy as np

    x, y = (values - values.mean(-1, keepdims=True) for values in (labels.astype(float), predicted.astype(float)))
    spread = (x**2).sum(-1) * (y**2).sum(-1)
    spread = np.where(spread > 1e-20, spread, 0.0)  # a constant has no spread but rounding
    return np.clip(_ratio((x * y).sum(-1), np.sqrt(spread)), -1, 1)


def spearman(labels: Any, predicted: Any) -> Any:
    """Correlation of ranks, ties at their mean rank."""
    from scipy.stats import rankdata

    return pearson(rankdata(labels, axis=-1), rankdata(predicted, axis=-1))


def corr(labels: Any, predicted: Any) -> Any:
    """Mean of Pearson and Spearman, the paper's figure for STS-B."""
    return (pearson(labels, predicted) + spearman(labels, predicted)) / 2


def _ratio(above: Any, below: Any) -> Any:
    import numpy as np

    return np.divide(above, below, out=np.zeros(np.shape(above)), where=np.asarray(below) > 0)[()]


METRICS: dict[str, Callable[[Any, Any], Any]] = {
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
