"""reports/claims.py: AdaLoRA minus others, against scipy and numbers worked out by hand."""

import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
from fake_records import make, save
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from task_configs import task_config

from adalora_repro.cli.report import main
from adalora_repro.records.run_record import RunRecord
from adalora_repro.reports import claims
from adalora_repro.reports.frame import frame_of
from adalora_repro.reports.text import number

MCC = "matthews_correlation"
ADALORA = (0.50, 0.52, 0.51, 0.53, 0.54)
LORA = (0.45, 0.48, 0.45, 0.49, 0.48)


def run(method: str, score: float, seed: int = 0, held_out: float | None = None, **changes: Any) -> RunRecord:
    return make(score, held_out, method=method, seed=seed, hash=f"{method}{seed}{changes}", **changes)


def runs(scores: Mapping[str, Iterable[float]], **changes: Any) -> list[tuple[Path, RunRecord]]:
    records = [run(method, score, seed, **changes) for method, of in scores.items() for seed, score in enumerate(of)]
    return [(Path(f"runs/{record.key['hash']}/{i}/metrics.json"), record) for i, record in enumerate(records)]


def lines(records: list[tuple[Path, RunRecord]]) -> dict[str, Any]:
    made = claims.claims_of(frame_of(records, checkpoints=["final"]))
    return {line.against_id.partition(":")[0]: line for line in made.itertuples()}


def test_a_claim_is_a_paired_t_test_over_common_seeds() -> None:
    line = lines(runs({"adalora": ADALORA, "lora": (*LORA, 0.9)}))["lora"]
    test = stats.ttest_rel([100 * a for a in ADALORA], [100 * b for b in LORA])
    interval = test.confidence_interval(0.95)
    assert (line.n_seeds, line.seeds, line.metric) == (5, "0 1 2 3 4", MCC)
    assert line.difference == pytest.approx(5.0)
    assert (line.low, line.high, line.p) == pytest.approx((interval.low, interval.high, test.pvalue))
    assert line.verdict == claims.SUPPORTED
    assert line.paper_difference == pytest.approx(70.04 - 68.71)  # CoLA at 0.3M


def test_holm_counts_each_test_once_and_a_lower_score_contradicts() -> None:
    """LoRA is the only baseline, so that two lines are one test; uniform ranks are better than AdaLoRA here."""
    uniform = [score + 0.04 + 0.001 * (i % 2) for i, score in enumerate(ADALORA)]
    of = lines(runs({"adalora": ADALORA, "lora": LORA, "adalora_uniform": uniform}))
    assert of["best baseline"].p_holm == of["lora"].p_holm == pytest.approx(of["lora"].p)
    assert of["adalora_uniform"].p_holm == pytest.approx(2 * of["adalora_uniform"].p)
    assert of["adalora_uniform"].verdict == claims.CONTRADICTED
    assert of["adalora_random"].verdict == claims.MISSING
    assert of["adalora_random"].reason == "no finished run of AdaLoRA (random scores)"


@given(st.floats(0.1, 5), st.floats(0.1, 5), st.integers(1, 8))
def test_seeds_needed_is_the_first_number_that_decides(difference: float, sd: float, tests: int) -> None:
    def p(n: int) -> float:
        return float(2 * stats.t.sf(difference / sd * n**0.5, n - 1))

    needed = claims.seeds_needed(difference, sd, tests)
    assert needed == claims.seeds_needed(-difference, sd, tests)
    if needed is None:
        assert p(claims.MOST_SEEDS) >= 0.05 / tests
    else:
        assert p(needed) < 0.05 / tests
        assert needed == 2 or p(needed - 1) >= 0.05 / tests


def test_an_undecided_claim_says_how_many_seeds_would_decide_it() -> None:
    """p is 0.028: decided by one test, not by two."""
    more = (0.005, 0.017, 0.03, 0.043, 0.055)
    ours = [score + one for score, one in zip(LORA, more, strict=True)]
    assert lines(runs({"adalora": ours, "lora": LORA}))["lora"].verdict == claims.SUPPORTED
    line = lines(runs({"adalora": ours, "lora": LORA, "adalora_uniform": LORA}))["lora"]
    assert (line.verdict, line.difference) == (claims.UNDECIDED, pytest.approx(3.0))
    assert line.seeds_needed == claims.seeds_needed(3.0, 100 * statistics.stdev(more), 2) == 6


def test_one_seed_and_other_examples_have_no_test() -> None:
    line = lines(runs({"adalora": ADALORA[:1], "lora": LORA}))["lora"]
    assert (line.difference, line.verdict) == (pytest.approx(5.0), claims.UNDECIDED)
    assert line.reason == "fewer than two common seeds"
    assert claims.verdict_text(line) == "undecided (?)"
    other = runs({"lora": LORA}, data={"source": "local", "rows": {"train": 8551, "validation": 99}})
    line = lines([*runs({"adalora": ADALORA}), *other])["lora"]
    assert (line.verdict, line.reason) == (claims.MISSING, "evaluated on different examples")


def test_figures_of_two_metrics_are_not_subtracted() -> None:
    score = {"accuracy": 0.9, "f1": 0.5}
    records = runs({"adalora": [score] * 2}, task="mrpc")
    records += runs({"lora": [score] * 2}, task="mrpc", primary_metric="f1", settings={"task.family": "glue"})
    of = lines(records)
    assert (of["lora"].verdict, of["lora"].reason) == (claims.MISSING, "its primary metric is f1")
    assert of["best baseline"].reason == "no finished run of best baseline"


def test_the_best_baseline_is_chosen_on_the_held_out_split() -> None:
    records = runs({"adalora": ADALORA, "full": (0.9,) * 5}, held_out=0.5)
    records += [*runs({"lora": LORA}, held_out=0.6), *runs({"pfeiffer": ADALORA}, held_out=0.5)]
    line = lines(records)["best baseline"]
    assert (line.against_method, line.against) == ("lora", "best baseline: LoRA")  # full has another size


def test_any_method_is_compared_with_lora_and_the_best_of_the_others() -> None:
    """A method of one's own is a baseline to others, and never to itself."""
    mine = [score + 0.02 for score in ADALORA]
    records = runs({"my_method": mine, "adalora": ADALORA, "lora": LORA, "pfeiffer": [score - 0.1 for score in LORA]})
    frame = frame_of(records, checkpoints=["final"])
    of = {line.against_method: line for line in claims.claims_of(frame, "my_method").itertuples()}
    assert list(of) == ["lora", "adalora"]  # LoRA is the best baseline too
    assert of["lora"].difference == pytest.approx(7.0)
    assert (of["adalora"].difference, of["adalora"].paper_difference) == (pytest.approx(2.0), None)
    (line,) = [line for line in claims.claims_of(frame, "lora").itertuples() if line.against_method == "adalora"]
    assert line.paper_difference == pytest.approx(68.71 - 70.04)
    assert (line.verdict, lines(records)["best baseline"].against_method) == (claims.CONTRADICTED, "my_method")


def test_time_is_compared_over_the_common_seeds_of_one_device() -> None:
    """Not where the device is another, nor where a run has no time."""
    h100, h200 = ({"environment": {"device": name}, "memory": {"of": "cuda allocator"}} for name in ("H100", "H200"))
    records = runs({"adalora": ADALORA[:2]}, time={"train_s": 30.0}, **h100)
    records += runs({"lora": LORA}, time={"train_s": 20.0}, **h100)
    records += runs({"adalora_uniform": LORA}, time={"train_s": 30.0}, **h200) + runs({"adalora_random": LORA}, **h100)
    records[3][1].time = {"train_s": 60.0}
    ratios = {name: number(line.time_ratio) for name, line in lines(records).items()}
    assert ratios["lora"] == pytest.approx((30 + 30) / (20 + 60))
    assert ratios["adalora_uniform"] is ratios["adalora_random"] is None


def test_the_released_protocol_is_a_line_of_its_own() -> None:
    released = runs({"adalora": [score - 0.01 for score in LORA], "houlsby": ADALORA}, protocol="released")
    of = lines([*runs({"adalora": ADALORA, "lora": LORA}), *released])
    assert of["best baseline"].against_method == "lora"
    assert of["adalora (released)"].difference == pytest.approx(6.0)
    assert of["lora"].difference == pytest.approx(5.0)


def test_cells_of_several_backbones_and_unlike_training_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = [{"source": "local", "rows_sha256": {"train": digest * 64}} for digest in "ab"]
    records = [*runs({"adalora": ADALORA}, total_steps=50, data=data[0]), *runs({"lora": LORA}, data=data[1])]
    records += runs({"adalora": ADALORA, "lora": LORA}, data="sample")
    records += runs({"pfeiffer": (0.9,)}, settings={"method.revision": 1})
    for _, record in records:
        save(tmp_path, record)
    assert main(["claims", "--results", str(tmp_path)]) == 0
    shown, refused = capsys.readouterr()
    assert "minilm local cola 0.3M   lora  " in shown
    assert "minilm sample cola 0.3M  lora  " in shown
    unlike = (
        "- Trained differently (total_steps 50, 100; rows of train (SHA-256) aaaaaaaa, bbbbbbbb): minilm local cola "
        "0.3M LoRA, minilm local cola 0.3M best"
    )
    assert unlike in " ".join(shown.split())
    assert "earlier definition of 'pfeiffer'" in refused


def test_the_papers_difference_is_at_the_same_rank_of_lora() -> None:
    settings = make().settings | {"task.budgets": "glue"}
    changes = {"settings": settings, "budget": {"params": 83000, "n": 36, "r": 2}}
    records = []
    for path, record in runs({"adalora": ADALORA, "lora": LORA}, **changes):
        record.key["budget"] = "params83000"
        records.append((path, record))
    line = lines(records)["lora"]
    assert (line.paper_budget, line.paper_difference) == ("0.3M", pytest.approx(70.04 - 68.71))
    assert lines(records)["best baseline"].paper_difference == pytest.approx(70.04 - 69.06)  # Pfeiffer adapters


def test_budgets_come_in_the_order_of_their_size() -> None:
    sizes = ["0.3M", "params9000", "params83000"]
    records = [one for size in sizes for one in runs({"adalora": ADALORA, "lora": LORA}, budget=size)]
    assert claims.claims_of(frame_of(records, checkpoints=["final"])).budget.drop_duplicates().tolist() == sizes


def test_the_primary_metric_of_the_papers_columns() -> None:
    columns = [column for spec in claims.PRINTED for column in spec.columns]
    names = {column.task: task_config(column.task).task.primary_metric for column in columns}
    assert all(names[column.task] in column.metrics for column in columns)  # so that the paper's number is found


def test_the_optimism_of_choosing_on_the_reported_split() -> None:
    """On the seed with all rates: 0.50 is the best reported score, 0.47 the one at the best held-out rate."""
    tried = {1e-3: (0.47, 0.60), 2e-3: (0.50, 0.55), 5e-3: (0.30, 0.20)}
    records = [run("lora", score, held_out=held_out, lr=lr) for lr, (score, held_out) in tried.items()]
    records.append(run("lora", 0.9, seed=1, held_out=0.1, lr=1e-3))
    both = ([(Path(f"{i}/metrics.json"), record) for i, record in enumerate(records)], runs({"lora": LORA}))
    found, without = (claims.optimism_measured(frame_of(made, checkpoints=["final"])) for made in both)
    assert found == [("cola LoRA", pytest.approx(3.0))]
    assert without == []  # no held-out split


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ("text", "cola 0.3M  lora                 +5.0 ["),
        ("markdown", "| cola 0.3M | LoRA                      | +5.00 \\["),
        ("latex", r"cola 0.3M & LoRA & +5.00 {[}"),
        ("csv", "minilm,local,cola,0.3M,adalora,LoRA,lora,lora,paper,matthews_correlation,5,0 1 2 3 4,5.0,"),
        ("html", "<td"),
    ],
)
def test_the_command(form: str, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _, record in runs({"adalora": ADALORA, "lora": LORA}):
        save(tmp_path, record)
    assert main(["claims", "--results", str(tmp_path), "--format", form, "--notes"]) == 0
    shown = capsys.readouterr().out
    assert text in shown
    assert "supported" in shown
    assert form == "csv" or "Selection rule" in shown


def test_without_runs_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "runs").mkdir()
    assert main(["claims", "--results", str(tmp_path)]) == 0
    assert "Claims: AdaLoRA minus others: no finished run of it with protocol=paper yet.\n" in capsys.readouterr().out
