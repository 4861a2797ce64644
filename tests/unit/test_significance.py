"""reports/significance.py: tests against slow oracles, and the marks of a table."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import scipy.stats  # noqa: F401  # its import takes longer than hypothesis lets a test take
from compiled import compiled, figures
from fake_records import make
from hypothesis import given
from hypothesis import strategies as st

from adalora_repro.metrics.glue import METRICS
from adalora_repro.records.run_record import RunRecord
from adalora_repro.reports.cells import Table
from adalora_repro.reports.notes import UNEQUAL, marks_of
from adalora_repro.reports.render import render
from adalora_repro.reports.significance import (
    FULL_MARK,
    MARK,
    MEASURES,
    NoTest,
    bootstrap,
    evaluated_on,
    holm,
    mcnemar,
    paired_t,
    same_examples,
    with_marks,
)
from adalora_repro.reports.spec import Column, Spec
from adalora_repro.reports.tables import controls, table1


def test_paired_t_by_hand() -> None:
    # d = 1 … 5: mean 3, sd sqrt(5/2), t = 3 sqrt(2); with 4 degrees of freedom sin θ = 3/sqrt(11), cos² θ = 2/11
    expected = 1 - 3 / math.sqrt(11) * (1 + 1 / 11)
    assert paired_t([1, 2, 3, 4, 5], [0] * 5) == pytest.approx(expected, abs=1e-12)
    assert paired_t([0] * 5, [1, 2, 3, 4, 5]) == pytest.approx(expected, abs=1e-12)
    assert paired_t([1, 2], [1, 2]) == 1.0
    with pytest.raises(NoTest, match="same for every seed"):
        paired_t([2, 3], [1, 2])
    with pytest.raises(NoTest, match="fewer than two"):
        paired_t([1.0], [2.0])


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_mcnemar_is_the_sum_over_all_outcomes(pairs: list[tuple[bool, bool]]) -> None:
    ours, theirs = (np.array(column) for column in zip(*pairs, strict=True))
    only = sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs)
    n = sum(only)
    expected = min(1.0, 2 * sum(math.comb(n, k) for k in range(min(only) + 1)) / 2**n)
    assert mcnemar(ours, theirs) == pytest.approx(expected, abs=1e-12)
    assert mcnemar(ours, theirs) == mcnemar(theirs, ours)


def test_holm_by_hand() -> None:
    # sorted 0.005 · 4, 0.01 · 3, 0.03 · 2, then 0.04 · 1 which may not be below the one before
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.5]) == [1.0, 1.0]
    assert holm([]) == []


def data_of(name: str, n: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels and the predictions of two runs; with ties where ranks are taken."""
    rng = np.random.default_rng(seed)
    if name in ("pearson", "spearman", "corr"):
        labels = rng.integers(0, 6, n) / 5
        return labels, np.round(labels + rng.normal(0, 0.5, n), 1), np.round(labels + rng.normal(0, 0.9, n), 1)
    labels = rng.integers(0, 3 if name == "accuracy" else 2, n).astype(float)
    ours, theirs = (np.where(rng.random(n) < share, labels, 1 - labels) for share in (0.8, 0.6))
    return labels, ours, theirs


@pytest.mark.parametrize("name", sorted(METRICS))
def test_a_measure_is_the_metric_of_the_task_along_the_last_axis(name: str) -> None:
    labels, ours, theirs = data_of(name, 40, 3)
    constant = np.full(40, 0.1 if name in ("pearson", "spearman", "corr") else 0.0)  # scores 0 where that is undefined
    third = (np.arange(40) % 3).astype(float)  # of three classes
    runs = [ours, theirs, constant, *([third] if name == "matthews_correlation" else [])]
    measured = MEASURES[name](np.stack([labels] * len(runs)), np.stack(runs))
    assert measured == pytest.approx([METRICS[name](labels, run) for run in runs], abs=1e-9)


@pytest.mark.parametrize("name", [*sorted(METRICS), "mean"])
def test_bootstrap_is_antisymmetric_repeatable_and_0_for_equal_runs(name: str) -> None:
    labels, ours, theirs = data_of(name, 60, 2)
    low, high, p = bootstrap(name, labels, ours, theirs, 400)
    assert low < high
    assert bootstrap(name, labels, ours, theirs, 400) == (low, high, p)
    assert bootstrap(name, labels, theirs, ours, 400) == pytest.approx((-high, -low, p), abs=1e-12)
    assert bootstrap(name, labels, ours, ours, 50) == (0.0, 0.0, 1.0)


def test_bootstrap_p_counts_the_smaller_tail_and_the_sample_itself() -> None:
    ones = np.ones(40)
    assert bootstrap("mean", ones, ones, np.zeros(40), 99)[2] == pytest.approx(2 / 100)
    rng = np.random.default_rng(6)
    ours = rng.random(300)
    theirs = ours - rng.normal(0.02, 0.1, 300)
    low, high, p = bootstrap("mean", np.ones(300), ours, theirs)
    assert 0 < p < 0.05
    error = (ours - theirs).std() / math.sqrt(300)
    assert (high - low) / (2 * 1.96) == pytest.approx(error, rel=0.05)


# --- the marks of a table ---------------------------------------------------------------------------------------------


def seeds(scores: Sequence[float], **key: object) -> list[RunRecord]:
    return [make(score, seed=seed, **key) for seed, score in enumerate(scores)]


def marked(*groups: list[RunRecord], spec: Spec = table1.SPEC) -> Table:
    return with_marks(compiled([record for group in groups for record in group], spec))


LORA, ADALORA = [0.60, 0.61, 0.62, 0.60, 0.61], [0.66, 0.68, 0.67, 0.66, 0.68, 0.9]


def test_a_mark_is_a_paired_t_test_over_the_common_seeds() -> None:
    table = marked(seeds(LORA), seeds(ADALORA, method="adalora"))
    (figure,) = figures(table, "adalora")
    p = paired_t([100 * x for x in ADALORA[:5]], [100 * x for x in LORA])
    assert (figure.baseline, figure.test, figure.mark) == ("LoRA 0.3M", "paired t-test, 5 seeds", MARK)
    assert (figure.p, figure.p_holm) == pytest.approx((p, p))
    assert figures(table)[0].test is None
    assert "Tests in this table: 1," in table.tests[0]
    assert "**70.83**\\*" in render(table, "markdown")
    assert r"\textbf{70.83}$^{*}$" in render(table, "latex")
    assert "<b>70.83</b><sup>*</sup>" in render(table, "html")
    assert "- * Differs significantly from the best baseline" in render(table, "text")
    behind = [score - less for score, less in zip(LORA, (0.005, 0.017, 0.03, 0.043, 0.055), strict=True)]
    for methods, mark in ((["adalora"], MARK), (["adalora", "houlsby"], "")):  # p is 0.028, of two tests twice that
        table = marked(seeds(LORA), *(seeds(behind, method=method) for method in methods))
        assert figures(table, "adalora")[0].mark == mark


def test_the_best_baseline_is_of_the_same_budget_and_follows_from_the_role() -> None:
    """Ablations, controls, cross-checks and AdaLoRA are no baselines, whatever their names; one's own method is one."""
    base = {"lora": 0.6, "mine": 0.65, "adalora": 0.7, "peft_adalora": 0.72, "lora_rank_pattern": 0.66}
    base |= {"lora_init_r": 0.67}
    groups = [seeds([x, x + 0.01 * i, x + 0.03], method=m) for i, (m, x) in enumerate(base.items())]
    groups.append(seeds([0.9, 0.91, 0.95], method="houlsby", budget="1.2M"))
    against = {figure.method: figure.baseline for figure in marked(*groups).figures.itertuples() if figure.baseline}
    assert against == dict.fromkeys(("lora", "adalora", "peft_adalora"), "mine 0.3M")
    table = marked(*groups, spec=controls.SPEC)
    against = {figure.method: figure.baseline for figure in table.figures.itertuples() if figure.baseline}
    assert against == dict.fromkeys(("adalora", "lora_rank_pattern", "lora_init_r"), "LoRA 0.3M")


def test_the_best_baseline_has_the_most_seeds_and_is_chosen_on_the_held_out_split() -> None:
    """As in ``claims``: one lucky seed leaves no row without a test, and a choice is not by the scores tested."""
    lucky = marked(seeds(LORA), seeds(ADALORA, method="adalora"), [make(0.99, method="pfeiffer")])
    assert (figures(lucky, "adalora")[0].baseline, figures(lucky, "adalora")[0].mark) == ("LoRA 0.3M", MARK)
    groups = [seeds(LORA, held_out=0.9), seeds(ADALORA[:5], held_out=0.5, method="houlsby")]
    groups.append(seeds(LORA, held_out=0.5, method="adalora"))
    assert figures(marked(*groups), "adalora")[0].baseline == "LoRA 0.3M"


def test_a_figure_that_is_neither_better_nor_worse_is_not_tested() -> None:
    entropy = Column("cola", "Ranks", "entropy", ("rank_entropy",), better="neither")
    ranks = [{"rank_pattern": {"a": 1, "b": seed}} for seed in range(1, 4)]
    groups = [[make(method=m, seed=i, **of) for i, of in enumerate(ranks)] for m in ("lora", "adalora")]
    assert marked(*groups, spec=replace(table1.SPEC, columns=(entropy,), average=None)).tests == ()


def test_the_best_row_of_each_budget_is_compared_with_full_fine_tuning() -> None:
    whole = [0.50, 0.52, 0.51]
    scores = {("lora", "0.3M"): 0.55, ("adalora", "0.3M"): 0.60, ("houlsby", "1.2M"): 0.58, ("lora", "1.2M"): 0.4}
    groups = [seeds([x, x + 0.03, x + 0.015], method=m, budget=b) for (m, b), x in scores.items()]
    groups += [seeds(whole, method="full", budget="full"), seeds([0.7, 0.71, 0.73], method="bitfit", budget="bitfit")]
    table = marked(*groups)
    compared = {(figure.method, figure.budget): figure for figure in table.figures.itertuples() if figure.full_test}
    assert set(compared) == {("adalora", "0.3M"), ("houlsby", "1.2M")}
    expected = paired_t([100 * x for x in (0.60, 0.63, 0.615)], [100 * x for x in whole])
    assert compared["adalora", "0.3M"].full_p == pytest.approx(expected)
    assert compared["adalora", "0.3M"].full_mark == FULL_MARK
    assert "Tests in this table: 2," in table.tests[0]  # against baselines each seed differs by the same: not tested
    assert any(note.startswith("Not tested (the difference is the same for every seed") for note in table.tests)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"data": {"source": "local", "rows": {"train": 8551, "validation": 100}}}, "evaluated on different examples"),
        ({"seed": 7}, "fewer than two common seeds"),
    ],
)
def test_what_cannot_be_tested_is_named(change: dict[str, object], reason: str) -> None:
    others = [make(0.7 + 0.02 * seed**2, method="adalora", **({"seed": seed} | change)) for seed in range(3)]
    table = marked(seeds([0.60, 0.61, 0.62]), others[: 1 if "seed" in change else 3])
    assert figures(table, "adalora")[0].test is None
    assert table.tests[-1] == f"Not tested ({reason}): AdaLoRA 0.3M CoLA matthews_correlation."


def tuned(scores: Sequence[float], lrs: Sequence[float], **key: object) -> list[RunRecord]:
    """Seeds at the first learning rate, seed 0 at the others, which score less."""
    return [*seeds(scores, lr=lrs[0], **key), *(make(0.1, lr=lr, **key) for lr in lrs[1:])]


def test_marks_and_bold_say_when_the_sides_tried_different_numbers_of_rates() -> None:
    low, high = (0.50, 0.51, 0.52), (0.60, 0.62, 0.63)
    unequal = marked(tuned(low, (1e-3,)), tuned(high, (1e-3, 2e-3, 5e-3), method="adalora"))
    (figure,) = figures(unequal, "adalora")
    assert (figure.best, figure.best_unequal, figure.lrs, figure.baseline_lrs) == (True, True, 3, 1)
    assert marks_of(figure) == MARK + UNEQUAL
    assert "Unequal tuning" in render(unequal, "text")
    assert r"$^{*\ddagger}$" in render(unequal, "latex")
    equal = marked(tuned(low, (1e-3,)), tuned(high, (1e-3,), method="adalora"))
    assert marks_of(figures(equal, "adalora")[0]) == MARK
    assert "Unequal tuning" not in render(equal, "text", notes=True)


# --- which examples ---------------------------------------------------------------------------------------------------


def test_the_training_split_may_differ_and_the_validation_split_not() -> None:
    def record(**sha: str) -> RunRecord:
        return make(0.5, data={"source": "local", "fingerprint": str(sha), "sha256": sha})

    assert evaluated_on(record(train="a", validation="b")) == evaluated_on(record(train="c", validation="b"))
    assert evaluated_on(record(train="a", validation="b")) != evaluated_on(record(train="a", validation="c"))
    assert evaluated_on(make(0.5)) != evaluated_on(make(0.5, max_examples=100))


def test_local_files_with_the_same_rows_are_the_same_examples() -> None:
    """Whatever their bytes, where both records say what the rows are; one from before says the bytes alone."""

    def record(sha: str, rows: str | None) -> RunRecord:
        data = {"source": "local", "sha256": {"train": "t", "validation": sha}}
        return make(0.5, data=data | ({} if rows is None else {"rows_sha256": {"train": sha, "validation": rows}}))

    assert same_examples(record("a", "r"), record("b", "r"))
    assert not same_examples(record("a", "r"), record("a", "s"))
    assert same_examples(record("a", "r"), record("a", None))
    assert not same_examples(record("a", "r"), record("b", None))
    assert not same_examples(record("a", None), record("b", None))
