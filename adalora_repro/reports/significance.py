"""Tests of a difference between two runs or two cells: pure statistics, two-sided; numpy and scipy load at the first.

Over seeds: the paired t-test. A test that only permutes signs (Wilcoxon's, say) cannot reach p < 0.05 with five seeds:
its smallest p is 2 / 2^5 = 0.0625. Over examples: McNemar's test where each example is right or wrong, otherwise the
paired bootstrap, which draws examples and keeps what both runs made of one together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LEVEL = 0.05
RESAMPLES = 10_000
BATCH = 100_000  # numbers held at once for a batch of resamples: what a cache holds is drawn three times as fast
TINY = 1e-9  # points: what rounding makes of scores that are equal


class NoTest(ValueError):
    """There is no valid test here; the message is the reason, a phrase."""


def paired_t(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """p of the paired t-test of H0: the mean difference over seeds is 0; scores in percent, in the order of the seeds.

        t = mean(d) / (sd(d) / sqrt(n)),  n - 1 degrees of freedom

    Differences that are all 0 have p = 1.

    Raises:
        NoTest: fewer than two pairs; differences that are all the same and not 0, for which t has no value.
    """
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    if len(differences) < 2:
        raise NoTest("fewer than two common seeds")
    if max(map(abs, differences)) < TINY:
        return 1.0
    if max(differences) - min(differences) < TINY:
        raise NoTest("the difference is the same for every seed, so its spread is unknown")
    from scipy.stats import ttest_rel

    return float(ttest_rel(ours, theirs).pvalue)


def mcnemar(ours: NDArray[np.bool_], theirs: NDArray[np.bool_]) -> float:
    """p of McNemar's exact test of H0: both runs are right equally often; bool (examples,): right or wrong.

    Among the n examples that one run alone got right, its share is binomial (n, 1/2). Without such examples p = 1.
    """
    only_ours, only_theirs = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
    if only_ours + only_theirs == 0:
        return 1.0
    from scipy.stats import binomtest

    return float(binomtest(only_ours, only_ours + only_theirs).pvalue)


def holm(values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: the i-th smallest of m (i = 0 …) becomes max over j <= i of min(1, (m - j) p_j)."""
    corrected = [0.0] * len(values)
    largest = 0.0
    for i, place in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        largest = max(largest, min(1.0, (len(values) - i) * values[place]))
        corrected[place] = largest
    return corrected


def bootstrap_p(differences: NDArray[np.float64]) -> float:
    """p from the resampled differences: twice the smaller tail at 0, counting the sample itself; at most 1."""
    tail = min(int((differences <= 0).sum()), int((differences >= 0).sum()))
    return min(1.0, 2 * (tail + 1) / (len(differences) + 1))


def interval(differences: NDArray[np.float64]) -> tuple[float, float]:
    """Percentile interval of level 1 - ``LEVEL``."""
    import numpy as np

    low, high = np.quantile(differences, [LEVEL / 2, 1 - LEVEL / 2])
    return float(low), float(high)


def bootstrap(
    measure: str,
    labels: NDArray[np.float64],
    ours: NDArray[np.float64],
    theirs: NDArray[np.float64],
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> NDArray[np.float64]:
    """Differences ours - theirs of a measure in ``resamples`` draws of n examples with replacement.

    Examples with equal (label, ours, theirs) form a pattern; a draw is the number of times that each pattern came.
    Swapping ours and theirs changes the signs and nothing else.

    Args:
        measure: a name of ``MEASURES``.
        labels, ours, theirs: (examples,); for ``mean``, which reads no labels, scores.
    """
    import numpy as np

    rows = np.column_stack([labels, ours, theirs])
    _, first, inverse, counts = np.unique(rows, axis=0, return_index=True, return_inverse=True, return_counts=True)
    order = np.argsort(first)  # by first appearance: it does not depend on which run is ours
    kinds, counts = rows[first[order]], counts[order]
    pattern = np.argsort(order)[inverse.ravel()]
    score = MEASURES[measure]
    parts = [
        score(weights, kinds[:, 0], kinds[:, 1]) - score(weights, kinds[:, 0], kinds[:, 2])
        for weights in _draws(pattern, counts, resamples, np.random.default_rng(seed))
    ]
    return np.concatenate(parts).round(12) + 0.0


def _draws(
    pattern: NDArray[Any], counts: NDArray[Any], resamples: int, rng: np.random.Generator
) -> Iterator[NDArray[np.float64]]:
    """Batches (draws, patterns) of how often each pattern came."""
    import numpy as np

    n, kinds = len(pattern), len(counts)
    few = 20 * kinds < n  # a multinomial draw takes time for each pattern, drawing examples for each example
    size = max(1, BATCH // (kinds if few else n))
    for start in range(0, resamples, size):
        draws = min(size, resamples - start)
        if few:
            yield rng.multinomial(n, counts / n, size=draws).astype(np.float64)
        else:
            drawn = pattern[rng.integers(n, size=(draws, n))] + kinds * np.arange(draws)[:, None]
            yield np.bincount(drawn.ravel(), minlength=draws * kinds).reshape(draws, kinds).astype(np.float64)


# Measures: (weights (draws, patterns), labels (patterns,), predictions or scores (patterns,)) -> (draws,), in the unit
# of ``tasks/``; as there, what is undefined is 0

Weights = Any
Measure = Callable[[Weights, Any, Any], Any]


def mean(weights: Weights, labels: Any, scores: Any) -> Any:
    del labels
    return weights @ scores / weights.sum(1)


def accuracy(weights: Weights, labels: Any, predicted: Any) -> Any:
    return mean(weights, labels, (labels == predicted).astype(float))


def f1(weights: Weights, labels: Any, predicted: Any) -> Any:
    """2 TP / (2 TP + FP + FN) of class 1."""
    positive, claimed = labels == 1, predicted == 1
    return _ratio(2 * weights @ (positive & claimed), weights @ positive + weights @ claimed)


def matthews_correlation(weights: Weights, labels: Any, predicted: Any) -> Any:
    """Gorodkin's R_K, for two classes the phi coefficient.

    (c s - Σ_k t_k p_k) / sqrt((s² - Σ_k t_k²) (s² - Σ_k p_k²)), c right ones of s, t_k and p_k true and predicted k.
    """
    import numpy as np

    classes = np.unique(np.concatenate([labels, predicted]))
    true, claimed = (weights @ (values[:, None] == classes) for values in (labels, predicted))
    s, c = weights.sum(1), weights @ (labels == predicted)
    spread = (s**2 - (true**2).sum(1)) * (s**2 - (claimed**2).sum(1))
    return _ratio(c * s - (true * claimed).sum(1), np.sqrt(spread))


def pearson(weights: Weights, labels: Any, predicted: Any) -> Any:
    return _correlation(weights, labels[None], predicted[None])


def spearman(weights: Weights, labels: Any, predicted: Any) -> Any:
    """Correlation of ranks, ties at their mean rank in each draw."""
    return _correlation(weights, _ranks(weights, labels), _ranks(weights, predicted))


def corr(weights: Weights, labels: Any, predicted: Any) -> Any:
    return (pearson(weights, labels, predicted) + spearman(weights, labels, predicted)) / 2


def _correlation(weights: Weights, x: Any, y: Any) -> Any:
    """Pearson's correlation of x and y, each (1 or draws, patterns)."""
    import numpy as np

    (x, spread_x), (y, spread_y) = _centred(weights, x), _centred(weights, y)
    return np.clip(_ratio((weights * x * y).sum(1), np.sqrt(spread_x * spread_y)), -1, 1)


def _centred(weights: Weights, values: Any) -> tuple[Any, Any]:
    """Values less the mean of their draw, and the sum of their squares: 0 where it is but rounding."""
    import numpy as np

    n = weights.sum(1, keepdims=True)
    centred = values - (weights * values).sum(1, keepdims=True) / n
    spread = (weights * centred**2).sum(1)
    return centred, np.where(spread > 1e-20 * n[:, 0] * (values**2).max(), spread, 0.0)


def _ranks(weights: Weights, values: Any) -> Any:
    """(draws, patterns): a value's mean rank in a draw, from how many are smaller and how many are equal."""
    import numpy as np

    _, inverse = np.unique(values, return_inverse=True)
    order = np.argsort(inverse, kind="stable")
    starts = np.flatnonzero(np.diff(inverse[order], prepend=-1))
    equal = np.add.reduceat(weights[:, order], starts, axis=1)
    return (equal.cumsum(1) - (equal - 1) / 2)[:, inverse]


def _ratio(above: Any, below: Any) -> Any:
    import numpy as np

    return np.divide(above, below, out=np.zeros(len(above)), where=below > 0)


BY_CLASS = ("accuracy", "f1", "matthews_correlation")  # labels and predictions are classes, not values
MEASURES: dict[str, Measure] = {
    "mean": mean,
    "accuracy": accuracy,
    "f1": f1,
    "matthews_correlation": matthews_correlation,
    "pearson": pearson,
    "spearman": spearman,
    "corr": corr,
}
