"""Figures of a study: intervals over seeds, learning rates tried, agreement of ranks; against numbers made by hand."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from fake_records import make
from scipy import stats

from adalora_repro.reports.figures import agreement, figure3, intervals, rates
from adalora_repro.reports.frame import frame_of
from adalora_repro.reports.spec import Scope

SCOPE = Scope("minilm", "local")


def records(*runs: dict[str, Any]) -> pd.DataFrame:
    made = [(Path(f"results/runs/{i}/metrics.json"), make(hash=str(i), **run)) for i, run in enumerate(runs)]
    return frame_of(made, checkpoints=["final"])


def test_the_interval_is_students_t_over_seeds() -> None:
    scores = (0.40, 0.42, 0.47)
    runs = [{"score": score, "seed": seed, "method": "lora"} for seed, score in enumerate(scores)]
    figure = intervals.figure(records(*runs, {"score": 0.9, "method": "full", "budget": "full"}), SCOPE)
    expected = stats.ttest_1samp([100 * score for score in scores], 0).confidence_interval(0.95)
    lora = figure.table[figure.table.label == "LoRA"].iloc[0]
    assert (lora.low, lora.high) == pytest.approx((expected.low, expected.high))
    full = figure.table[figure.table.label == "Full FT"].iloc[0]
    assert (full.score, full.low == full.low) == (pytest.approx(90.0), False)  # one seed has no interval
    assert list(figure.table.label) == ["LoRA", "Full FT"]  # the best is drawn on top
    assert figure.panels[0].title == "cola: matthews_correlation (%) at 0.3M"
    assert len(figure.points) == 4


def test_rates_are_those_of_one_seed_with_the_chosen_one_marked() -> None:
    tried = {1e-3: (0.3, 0.5), 2e-3: (0.4, 0.6), 5e-3: (0.5, 0.2)}
    runs = [{"score": s, "held_out": h, "lr": lr, "method": "lora"} for lr, (s, h) in tried.items()]
    runs += [{"score": 0.1, "held_out": 0.1, "lr": 2e-3, "seed": 1, "method": "lora"}]
    runs += [{"score": 0.1, "held_out": 0.1, "lr": 2e-3, "method": "pfeiffer"}]  # tried only one
    figure = rates.figure(records(*runs), SCOPE)
    assert [(p.seed, p.lr, p.chosen) for p in figure.points.itertuples()] == [
        (0, 1e-3, False),
        (0, 2e-3, True),
        (0, 5e-3, False),
    ]
    assert [panel.title for panel in figure.panels] == ["cola LoRA\n0.3M"]


def test_agreement_is_the_mean_of_spearmans_correlations() -> None:
    ranks = [[1, 2, 3, 4], [1, 2, 4, 3], [4, 3, 2, 1]]
    names = [f"encoder.0.{role}" for role in ("q", "k", "v", "attn_out")]
    runs = [
        {"score": 0.5, "seed": seed, "method": "adalora", "rank_pattern": dict(zip(names, own, strict=True))}
        for seed, own in enumerate(ranks)
    ]
    figure = agreement.figure(records(*runs, {"score": 0.5, "method": "lora"}), SCOPE)
    pairs = [stats.spearmanr(ranks[a], ranks[b]).statistic for a, b in ((0, 1), (0, 2), (1, 2))]
    (line,) = figure.table.itertuples()
    assert (line.n_seeds, line.agreement) == (3, pytest.approx(sum(pairs) / 3))
    assert figure.points.index.is_unique
    assert len(figure.points) == 12
    assert figure.panels[0].title.startswith("cola AdaLoRA\n0.3M\nagreement ")


def test_ranks_by_names_of_a_methods_own_are_in_no_figure() -> None:
    runs = [{"score": 0.5, "seed": seed, "method": "adalora"} for seed in (0, 1)]
    for names in ({"bert.encoder.layer.0.query": 3}, {"query": 3}):
        made = records(*({**run, "rank_pattern": names} for run in runs))
        assert agreement.figure(made, SCOPE).points.empty
        assert figure3.figure(made, SCOPE).points.empty
