"""Tests of a difference between two cells or two runs, two-sided; numpy and scipy are imported by the first test.

Over seeds: the paired t-test, whose marks a table carries. A test that only permutes signs (Wilcoxon's, say) cannot
reach p < 0.05 with five seeds: its smallest p is 2 / 2^5 = 0.0625. Over examples (``compare.py``): McNemar's test where
each example is right or wrong, otherwise the paired bootstrap.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from adalora_repro.config import catalog
from adalora_repro.metrics import resampling
from adalora_repro.records.run_record import RunRecord
from adalora_repro.records.selection import Run
from adalora_repro.reports.cells import AVERAGE, Table
from adalora_repro.reports.frame import COLUMNS

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from numpy.typing import NDArray

LEVEL = 0.05
RESAMPLES = 10_000
TINY = 1e-9  # points: what rounding makes of scores that are equal
FULL = "full"
MARK, FULL_MARK = "*", "§"
RULE = (
    f"Marks: {MARK} p < {LEVEL} by a paired t-test over the common seeds against the best baseline among the rows of "
    "the same budget that are no ablation, control or cross-check and not AdaLoRA; that row and averages are not "
    f"tested. {FULL_MARK}: the same test of the best row of each budget against full fine-tuning. The best row is, of "
    "those with the most seeds, the one with the best mean, on the held-out split where every one has it, otherwise on "
    "the reported split, which favours it. Tests are two-sided."
)
#: of a record's ``data``: what identifies the examples
EVALUATION_DATA = {"source", "rows", "sha256", "rows_sha256", "skipped", "hub", "hub_config", "revision"}
EVALUATION_DATA |= {"generator", "seed"}


class NoTest(ValueError):
    """There is no valid test here; the message is the reason, a phrase."""


# --- the tests --------------------------------------------------------------------------------------------------------


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


def half_width(sd: Any, n: Any) -> Any:
    """Half of Student's interval of level 1 - ``LEVEL`` of a mean, in the unit of ``sd``; NaN for n = 1.

    t(1 - LEVEL / 2, n - 1) sd / sqrt(n), for a number or a column.
    """
    from scipy.stats import t

    return t.ppf(1 - LEVEL / 2, n - 1) * sd / n**0.5


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
    for i, index in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        largest = max(largest, min(1.0, (len(values) - i) * values[index]))
        corrected[index] = largest
    return corrected


def bootstrap(
    measure: str, labels: NDArray[Any], ours: NDArray[Any], theirs: NDArray[Any], resamples: int = RESAMPLES
) -> tuple[float, float, float]:
    """The paired bootstrap over examples, seed 0, of the difference ours - theirs in a measure of ``MEASURES``.

    Swapping ours and theirs changes the signs and nothing else.

    Args:
        labels, ours, theirs: (examples,); for ``mean``, which reads no labels, scores.

    Returns:
        Low and high end of the percentile interval of level ``resampling.CONFIDENCE``; p, twice the smaller tail at 0
        with the sample itself counted, at most 1.
    """
    score = MEASURES[measure]

    def difference(labels: Any, ours: Any, theirs: Any, axis: int = -1) -> Any:
        del axis  # the measures are along the last one
        return (score(labels, ours) - score(labels, theirs)).round(12) + 0.0

    if len(labels) < 2 or (ours == theirs).all():
        return 0.0, 0.0, 1.0
    result = resampling.bootstrap((labels, ours, theirs), difference, resamples)
    drawn = result.bootstrap_distribution
    tail = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
    low, high = result.confidence_interval
    return float(low), float(high), min(1.0, 2 * (tail + 1) / (resamples + 1))


# --- measures: (labels, predictions or scores), each (…, examples) -> (…); what is undefined is 0, as in ``metrics/`` -


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
    import numpy as np

    x, y = (values - values.mean(-1, keepdims=True) for values in (labels, predicted))
    spread = (x**2).sum(-1) * (y**2).sum(-1)
    spread = np.where(spread > 1e-20, spread, 0.0)  # a constant has no spread but rounding
    return np.clip(_ratio((x * y).sum(-1), np.sqrt(spread)), -1, 1)


def spearman(labels: Any, predicted: Any) -> Any:
    """Correlation of ranks, ties at their mean rank."""
    from scipy.stats import rankdata

    return pearson(rankdata(labels, axis=-1), rankdata(predicted, axis=-1))


def _ratio(above: Any, below: Any) -> Any:
    import numpy as np

    return np.divide(above, below, out=np.zeros(np.shape(above)), where=np.asarray(below) > 0)


MEASURES: dict[str, Callable[[Any, Any], Any]] = {
    "mean": lambda _, scores: scores.mean(-1),
    "accuracy": lambda labels, predicted: (labels == predicted).mean(-1),
    "f1": f1,
    "matthews_correlation": matthews_correlation,
    "pearson": pearson,
    "spearman": spearman,
    "corr": lambda labels, predicted: (pearson(labels, predicted) + spearman(labels, predicted)) / 2,
}


# --- which examples ---------------------------------------------------------------------------------------------------


def same_examples(ours: RunRecord, theirs: RunRecord) -> bool:
    """Whether two runs were evaluated on the same data.

    Local files are compared by their rows where both records have the sums of them, otherwise by their bytes.
    """
    data = [evaluated_on(record) for record in (ours, theirs)]
    sums = [one.pop("rows_sha256", None) for one in data]
    if None not in sums:
        data = [one | {"sha256": rows} for one, rows in zip(data, sums, strict=True)]
    return data[0] == data[1]


def evaluated_on(record: RunRecord) -> dict[str, Any]:
    """What identifies the examples that a run was evaluated on: its data without the training and held-out splits."""
    examples: dict[str, Any] = {name: record.key[name] for name in ("task", "max_examples")}
    for name in EVALUATION_DATA & record.data.keys():
        value = record.data[name]
        if isinstance(value, dict):
            value = {split: part for split, part in value.items() if split not in ("train", "holdout")}
        examples[name] = value
    return examples


# --- the marks of a table ---------------------------------------------------------------------------------------------


def with_marks(table: Table) -> Table:
    """The table with the tests of its figures; p is corrected by Holm's method over all tests of the table."""
    import pandas as pd

    figures = table.figures.copy()
    runs = {(row.method, row.budget, i): cell.runs for row in table.rows for i, cell in enumerate(row.cells) if cell}
    tested: list[tuple[str, int, dict[str, Any]]] = []
    untested: dict[str, list[str]] = defaultdict(list)
    for prefix, index, other in pairs(table):
        ours, theirs = figures.loc[index], figures.loc[other]
        of_ours, of_theirs = (runs[side.method, side.budget, side.position] for side in (ours, theirs))
        try:
            seeds, p = tested_pair(of_ours, of_theirs, ours["values"], theirs["values"])
        except NoTest as reason:
            against = f" against {theirs.method_name}" * bool(prefix)
            heading = table.spec.columns[ours.position].heading
            untested[str(reason)].append(f"{ours.method_name} {heading} {ours.metric}{against}")
            continue
        result = {"test": f"paired t-test, {seeds} seeds", "baseline_lrs": theirs.n_lrs_tried, "p": p}
        result |= {} if prefix else {"baseline": theirs.method_name, "lrs": ours.n_lrs_tried}
        tested.append((prefix, index, result))
    for (prefix, index, result), p_holm in zip(tested, holm([result["p"] for _, _, result in tested]), strict=True):
        result |= {"p_holm": p_holm, "mark": (FULL_MARK if prefix else MARK) if p_holm < LEVEL else ""}
        figures.loc[index, [f"{prefix}{name}" for name in result]] = pd.Series(
            list(result.values()), dtype=object
        ).values
    count = f"Tests in this table: {len(tested)}, p corrected by Holm for as many"
    notes = [f"{RULE} {count}; adalora-report claims corrects for its own, and may decide otherwise."] if tested else []
    notes += [f"Not tested ({reason}): {', '.join(names)}." for reason, names in untested.items()]
    return replace(table, figures=figures, tests=tuple(notes))


def pairs(table: Table) -> Iterator[tuple[str, int, int]]:
    """(prefix of the columns, figure, the figure it is compared with): the best baseline, or full fine-tuning."""
    figures = table.figures[table.figures.position != AVERAGE]
    for (position, metric), column in figures[figures["mean"].notna()].groupby(["position", "metric"], sort=False):
        better = table.spec.columns[int(position)].better
        if better == "neither":
            continue
        if better == "lower" or metric in COLUMNS:  # the held-out score does not say which row is best
            column = column.assign(mean=-column["mean"] if better == "lower" else column["mean"], chosen_on="")
        full = column[column.method == FULL]
        for budget, group in column.groupby("budget", sort=False):
            baselines = group[[catalog.method(name).baseline for name in group.method]]
            if len(baselines):
                best = best_row(baselines)
                yield from (("", int(i), best) for i in group.index if i != best)
            sized = group[[name != budget and catalog.method(name).role != "control" for name in group.method]]
            if len(sized) and len(full):
                yield "full_", best_row(sized), int(full.index[0])


def best_row(rows: pd.DataFrame) -> Any:
    """The index of the best of these rows, see ``RULE``; of equal ones the first."""
    rows = rows[rows.n_seeds == rows.n_seeds.max()]
    held_out = (rows.chosen_on == "held-out").all()
    return rows["held_out_mean" if held_out else "mean"].astype(float).idxmax()


def tested_pair(
    ours: Sequence[Run], theirs: Sequence[Run], a: Mapping[int, float], b: Mapping[int, float]
) -> tuple[int, float]:
    """(common seeds, p) of the values a and b by seed.

    Raises:
        NoTest: too few common seeds, other examples, or no spread.
    """
    seeds = sorted(a.keys() & b.keys())
    records = [{run.key["seed"]: run.record for run in runs} for runs in (ours, theirs)]
    if not all(same_examples(records[0][seed], records[1][seed]) for seed in seeds):
        raise NoTest("evaluated on different examples")
    return len(seeds), paired_t([a[seed] for seed in seeds], [b[seed] for seed in seeds])
