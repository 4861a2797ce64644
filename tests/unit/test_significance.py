"""tables/significance.py against slow oracles: closed forms, sums over all outcomes, the metrics of tasks/."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import wilcoxon

from adalora_repro.metrics.glue import METRICS
from adalora_repro.reports.significance import (
    MEASURES,
    NoTest,
    bootstrap,
    bootstrap_p,
    holm,
    interval,
    mcnemar,
    paired_t,
)

scores = st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 10_000)), min_size=2, max_size=8)


def slow_t(differences: Sequence[float]) -> float:
    """Two-sided p by the finite sums for integer degrees of freedom (Abramowitz and Stegun 26.7.3, 26.7.4)."""
    n = len(differences)
    t = statistics.fmean(differences) / (statistics.stdev(differences) / math.sqrt(n))
    theta = math.atan2(abs(t), math.sqrt(n - 1))
    sine, cosine = math.sin(theta), math.cos(theta)
    if (n - 1) % 2:
        term = total = cosine if n > 2 else 0.0
        for k in range(3, n - 2, 2):
            term *= (k - 1) / k * cosine**2
            total += term
        return 1 - 2 / math.pi * (theta + sine * total)
    term = total = 1.0
    for k in range(2, n - 2, 2):
        term *= (k - 1) / k * cosine**2
        total += term
    return 1 - sine * total


@given(scores)
def test_paired_t_is_the_closed_form_and_symmetric(pairs: list[tuple[int, int]]) -> None:
    ours, theirs = ([x / 100 for x in column] for column in zip(*pairs, strict=True))
    integers = [a - b for a, b in pairs]
    if len(set(integers)) == 1:
        if integers[0] == 0:
            assert paired_t(ours, theirs) == 1.0
        else:
            with pytest.raises(NoTest, match="same for every seed"):
                paired_t(ours, theirs)
        return
    p = paired_t(ours, theirs)
    assert 0 <= p <= 1
    assert p == pytest.approx(slow_t(integers), abs=1e-9)
    assert paired_t(theirs, ours) == pytest.approx(p, abs=1e-12)


def test_paired_t_by_hand() -> None:
    # d = 1 … 5: mean 3, sd sqrt(5/2), t = 3 sqrt(2); with 4 degrees of freedom sin θ = 3/sqrt(11), cos² θ = 2/11
    assert paired_t([1, 2, 3, 4, 5], [0] * 5) == pytest.approx(1 - 3 / math.sqrt(11) * (1 + 1 / 11), abs=1e-12)


def test_one_pair_is_no_test() -> None:
    with pytest.raises(NoTest, match="fewer than two"):
        paired_t([1.0], [2.0])


def test_signs_alone_cannot_be_significant_with_five_seeds() -> None:
    assert wilcoxon([1, 2, 3, 4, 5]).pvalue == pytest.approx(2 / 2**5)
    assert 2 / 2**5 > 0.05


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


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.randoms())
def test_holm_keeps_the_order_and_never_lowers(values: list[float], shuffler: random.Random) -> None:
    corrected = holm(values)
    assert all(raw <= new <= 1 for raw, new in zip(values, corrected, strict=True))
    in_order = [new for _, new in sorted(zip(values, corrected, strict=True))]
    assert all(a <= b for a, b in pairwise(in_order))
    assert all(new <= len(values) * raw for raw, new in zip(values, corrected, strict=True))
    places = list(range(len(values)))
    shuffler.shuffle(places)
    assert holm([values[i] for i in places]) == [corrected[i] for i in places]


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
def test_a_measure_of_weights_is_the_metric_of_repeated_examples(name: str) -> None:
    labels, predicted, _ = data_of(name, 12, 3)
    rng = np.random.default_rng(4)
    weights = rng.multinomial(12, np.full(12, 1 / 12), size=60).astype(float)
    found = MEASURES[name](weights, labels, predicted)
    for row, figure in zip(weights, found, strict=True):
        drawn = np.repeat(np.arange(12), row.astype(int))
        expected = METRICS[name](labels[drawn], predicted[drawn])
        assert figure == pytest.approx(expected, abs=1e-9)


def test_matthews_correlation_of_three_classes() -> None:
    rng = np.random.default_rng(0)
    labels, predicted = (rng.integers(0, 3, 50).astype(float) for _ in range(2))
    (found,) = MEASURES["matthews_correlation"](np.ones((1, 50)), labels, predicted)
    assert found == pytest.approx(METRICS["matthews_correlation"](labels, predicted), abs=1e-12)


@pytest.mark.parametrize("name", sorted(METRICS))
def test_constant_predictions_score_0_as_in_the_run(name: str) -> None:
    labels, _, _ = data_of(name, 50, 1)
    constant = np.full(50, 0.1 if name in ("pearson", "spearman", "corr") else 0.0)
    (found,) = MEASURES[name](np.ones((1, 50)), labels, constant)
    assert found == pytest.approx(METRICS[name](labels, constant), abs=1e-12)


@pytest.mark.parametrize("name", [*sorted(METRICS), "mean"])
@pytest.mark.parametrize("n", [30, 400])  # many patterns for few examples, and few for many
def test_bootstrap_is_antisymmetric_repeatable_and_0_for_equal_runs(name: str, n: int) -> None:
    labels, ours, theirs = data_of(name, n, 2)
    found = bootstrap(name, labels, ours, theirs, 500)
    assert found.shape == (500,)
    np.testing.assert_array_equal(found, -bootstrap(name, labels, theirs, ours, 500))
    np.testing.assert_array_equal(found, bootstrap(name, labels, ours, theirs, 500))
    assert bootstrap_p(found) == bootstrap_p(-found)
    low, high = interval(found)
    assert low <= high
    same = bootstrap(name, labels, ours, ours, 50)
    assert not same.any()
    assert bootstrap_p(same) == 1.0
    assert interval(same) == (0.0, 0.0)


@pytest.mark.parametrize("name", ["accuracy", "corr"])
def test_bootstrap_spreads_as_drawing_examples_one_by_one_does(name: str) -> None:
    labels, ours, theirs = data_of(name, 120, 5)
    rng = np.random.default_rng(9)
    slow = []
    for _ in range(1500):
        drawn = rng.integers(120, size=120)
        slow.append(METRICS[name](labels[drawn], ours[drawn]) - METRICS[name](labels[drawn], theirs[drawn]))
    fast = bootstrap(name, labels, ours, theirs, 4000)
    spread = statistics.stdev(slow)
    assert fast.mean() == pytest.approx(statistics.fmean(slow), abs=0.15 * spread)
    assert fast.std() == pytest.approx(spread, rel=0.1)


def test_bootstrap_of_means_has_the_standard_error() -> None:
    rng = np.random.default_rng(6)
    ours = rng.random(300)
    theirs = ours - rng.normal(0.02, 0.1, 300)
    found = bootstrap("mean", np.ones(300), ours, theirs)
    assert len(found) == 10_000
    assert found.mean() == pytest.approx((ours - theirs).mean(), abs=5e-4)
    assert found.std() == pytest.approx((ours - theirs).std() / math.sqrt(300), rel=0.05)


def test_bootstrap_p_counts_the_smaller_tail_and_the_sample_itself() -> None:
    assert bootstrap_p(np.array([1.0] * 97 + [-1.0, -1.0])) == pytest.approx(2 * 3 / 100)
    assert bootstrap_p(np.ones(99)) == pytest.approx(2 / 100)
    assert bootstrap_p(np.array([1.0, -1.0, 0.0])) == 1.0
