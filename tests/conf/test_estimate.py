"""Hours and memory of a plan from records: which records count, whose figures are shown, and what they add up to."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import plans
import pytest
from fake_records import make, save

from adalora_repro.config import dry_run, estimate
from adalora_repro.config.plan import Plan
from adalora_repro.records import cost_record
from adalora_repro.records.cost_record import CostRecord

pytestmark = pytest.mark.usefixtures("hydra")
H100 = {"environment": {"device": "NVIDIA H100", "threads": 8}, "memory": {"peak": 9e9, "of": "cuda allocator"}}
WORDS = ("task=mnli", "method=adalora", "backbone=deberta-v3-base", "method.schedule=scaled")


@functools.cache
def plan(*words: str) -> Plan:
    return plans.counted(*WORDS, "budget=0.3M", *words)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of results of a working directory; there are no other records."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(estimate, "resource", Path)
    return Path("results")


def save_run(results: Path, of: Plan, seconds: float, seed: int = 0, **changes: Any) -> Path:
    """A finished run as planned, of 100 steps of so many seconds and evaluations that took 40 s."""
    time = {"train_s": 100 * seconds, "eval_s": 40.0}
    names = ("backbone", "task", "method", "budget", "variant")
    settings = of.settings | changes.pop("settings", {})
    key = {name: of.key[name] for name in names} | {"seed": seed, "data": "hub"} | changes.pop("key", {})
    return save(results, make(**key, settings=settings, params=of.params, time=time, **(H100 | changes)))


def save_cost(results: Path, of: Plan, seconds: float, steps: int = 3) -> Path:
    names = ("backbone", "task", "method", "budget", "protocol")
    key = {name: of.key[name] for name in names} | dict.fromkeys(("precision", "padding", "weights"), "x")
    key |= {"data": "local", "typed": "", "tokenizer": "", "device": "AMD EPYC", "threads": 2, "against": None}
    own = {"budget": of.key["budget"], "params": of.params, "settings": of.settings, "peak_memory": 3e9}
    own |= dict.fromkeys(cost_record.TIMES, 1.0) | {"mean_s": seconds}
    pair = dict.fromkeys(cost_record.COUNTS, 1) | {"order": ["adalora"], "seconds": {"adalora": seconds}}
    epoch = {"steps": 1, "examples": 1}
    record = CostRecord(
        key | {"batch_size": 1}, {"adalora": own}, [pair] * steps, None, epoch, "resident set", {}, {}, 1.0
    )
    return cost_record.write(record, results)


def hours_of(of: Plan) -> dict[str, float]:
    return {one.device: one.hours(of.total_steps) for one in estimate.estimates(of)}


def test_a_plan_names_hours_memory_and_record_of_each_device(here: Path) -> None:
    run, cost = save_run(here, plan(), seconds=1.6), save_cost(here, plan(), seconds=5.0)
    text = dry_run.describe(plan())
    (gpu,) = [line for line in text.splitlines() if "NVIDIA H100" in line]
    (cpu,) = [line for line in text.splitlines() if "AMD EPYC (2 threads)" in line]
    assert plan().total_steps == 85_904
    assert f"about {85_904 * 2.0 / 3600:.1f} h" in gpu  # 1.6 s of training and 40 s / 100 of evaluation
    assert f"about {85_904 * 5.0 / 3600:.1f} h" in cpu
    assert gpu.endswith(f"2 s a step with evaluations, peak memory 9.00 GB: mean of 100 steps in {run}")
    assert cpu.endswith(f"5 s a step without evaluations, peak memory 3.00 GB: mean of 3 steps in {cost}")
    assert "no estimate" not in text


def test_without_a_record_the_plan_says_how_to_make_one(here: Path) -> None:
    text = dry_run.describe(dataclasses.replace(plan(), overrides=[*WORDS, "dry_run=true"]))
    assert f"to measure steps here: adalora-run {' '.join(WORDS)} measure=cost" in text


@pytest.mark.parametrize(
    "word", ["train.precision=bf16", "train.batch_size=16", "task.max_length=128", "method.targets=[q]", "data=sample"]
)
def test_a_run_that_takes_other_steps_says_nothing(here: Path, word: str) -> None:
    save_run(here, plan(), seconds=1.0)
    save_cost(here, plan(), seconds=1.0)
    assert not hours_of(plan(word))


def test_what_does_not_change_a_step_does_not_matter(here: Path) -> None:
    save_run(here, plan(), seconds=1.6)
    other = plan("optim.lr=1e-4", "seed=3", "train.max_steps=9000")
    assert hours_of(other) == {"NVIDIA H100": pytest.approx(9000 * 2.0 / 3600)}
    # of a run that evaluates more or less often only the training steps are comparable
    assert hours_of(plan("train.eval_steps=10")) == {"NVIDIA H100": pytest.approx(85_904 * 1.6 / 3600)}


def test_the_nearest_record_counts_and_of_several_the_median(here: Path) -> None:
    save_run(here, plan(), seconds=9.6, key={"budget": "1.2M", "variant": "v2"})
    assert hours_of(plan()) == {"NVIDIA H100": pytest.approx(85_904 * 10.0 / 3600)}
    for seed, seconds in enumerate((1.6, 3.6, 2.6)):
        save_run(here, plan(), seconds, seed)
    save_run(here, plan(), 0.1, seed=3, status="failed")
    assert hours_of(plan()) == {"NVIDIA H100": pytest.approx(85_904 * 3.0 / 3600)}


def test_a_sweep_adds_up_each_device_and_names_the_records(here: Path) -> None:
    run, cost = save_run(here, plan(), seconds=1.6), save_cost(here, plan(), seconds=5.0)
    sweep = dry_run.SweepPlan()
    lines = [sweep.line(plans.resolved(*WORDS, "budget=0.3M", f"seed={seed}")) for seed in (0, 1)]
    assert lines[0].endswith("to do, about 119.3 h on AMD EPYC (2 threads), about 47.7 h on NVIDIA H100")
    sweep.line(plans.resolved("task=rte", *WORDS[1:], "budget=0.3M"))
    total, *sources = sweep.total().splitlines()
    assert "3 to do; about 238.6 h on AMD EPYC (2 threads) for the 2 of them with a measurement; about 95.4 h" in total
    assert [source.rpartition(" in ")[2] for source in sources] == [str(cost), str(run)]
