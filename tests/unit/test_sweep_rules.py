"""config/sweep.py: lists -> cells -> jobs -> stages, and the summary of a sweep, without Hydra."""

import re
from pathlib import Path

import pytest
from fake_records import make

from adalora_repro.cli.ledger import DONE, FAILED, REFUSED, Ledger, SweepRun, outcome_on_disk, report_command
from adalora_repro.config import sweep
from adalora_repro.config.sweep import Choice, Job
from adalora_repro.errors import InputError
from adalora_repro.records import run_record

TABLES = {
    "table1": [
        {"task": ["cola", "rte"], "method": ["full"]},
        {"task": ["cola", "rte"], "method": ["lora", "adalora"], "budget": ["1.2M", "0.3M"]},
    ],
    "table2": [{"task": ["squad"], "method": ["lora"], "budget": ["0.08%"], "backbone": ["deberta-v3-base"]}],
}


def jobs(**lists: str) -> list[Job]:
    return sweep.jobs_of({key.replace("__", "."): text.split(",") for key, text in lists.items()}, TABLES)


def test_what_is_given_restricts_the_cells_and_is_set_in_every_job() -> None:
    assert len(jobs()) == 2 + 8 + 1
    assert [(job["task"], job["budget"], job["seed"]) for job in jobs(method="lora", task="rte", seed="0,1")] == [
        ("rte", budget, seed) for budget in ("1.2M", "0.3M") for seed in ("0", "1")
    ]
    assert {job["method"] for job in jobs(budget="0.3M")} == {"lora", "adalora"}  # full has no budget
    assert jobs(task="squad", backbone="minilm") == [
        {"task": "squad", "method": "lora", "budget": "0.08%", "backbone": "minilm"}
    ]
    assert sweep.jobs_of({"seed": ["0", "1"]}, {}) == [{"seed": "0"}, {"seed": "1"}]
    cell = {"task": "cola", "budget": "0.3M"}
    assert sweep.jobs_of({"method": ["lora"]}, {"mine": [{"task": ["cola"], "budget": ["0.3M"]}]}) == [
        cell | {"method": "lora"}
    ]
    alike = {"x": [{"task": ["cola"], "method": ["lora"], "optim.lr": ["1e-3", "1e-4"]}]}
    assert len(sweep.jobs_of({"optim.lr": ["5e-5"]}, alike)) == 1  # cells that differ in what is replaced are one


def test_a_method_that_no_cell_has_gets_the_budgets_that_it_has_a_size_for() -> None:
    own = [{"task": task, "method": "svd_lora", "budget": budget} for task in ("cola",) for budget in ("1.2M", "0.3M")]
    assert jobs(method="svd_lora", task="cola") == own
    for method in ("bitfit", "lora_rank_pattern"):
        assert jobs(method=method) == [
            {"task": "cola", "method": method},
            {"task": "rte", "method": method},
            {"task": "squad", "method": method, "backbone": "deberta-v3-base"},
        ]


@pytest.mark.parametrize(
    ("lists", "parts"),
    [
        ({"task": "colaa"}, ["task in table1, table2 'colaa'", "valid: cola, rte, squad"]),
        ({"task": "cola,sst2"}, ["'sst2'"]),
        ({"method": "lorra"}, ["method in table1, table2 'lorra'", "valid: full, lora, adalora"]),
        ({"budget": "9M"}, ["'9M'", "valid: 1.2M, 0.3M, 0.08%"]),
        ({"task": "squad", "budget": "0.3M"}, ["no cell of table1, table2 has", "valid: squad lora 0.08%"]),
        (
            {"task": "cola", "method": "full", "budget": "0.3M"},
            ["no cell of", "cola full; cola lora 1.2M; cola lora 0.3M"],
        ),
    ],
)
def test_a_restriction_that_leaves_nothing_is_refused(lists: dict[str, str], parts: list[str]) -> None:
    with pytest.raises(InputError) as error:
        jobs(**lists)
    assert all(part in str(error.value) for part in parts), error.value


def test_a_value_that_no_stage_has_is_refused() -> None:
    with pytest.raises(InputError, match=re.escape("seed in the stages '5'; valid: 0, 1, 2")):
        sweep.check_stages([{"seed": ["0"]}, {"seed": ["1", "2"]}], {"seed": ["2", "5"]})


def tried(folder: Path, scores: dict[str, float | None], held_out: dict[str, float] | None = None) -> list[Job]:
    """Jobs of one cell, with finished records of those that have a score."""
    made = []
    for lr, score in scores.items():
        made.append({"task": "cola", "method": "lora", "optim.lr": lr, "seed": "0"})
        if score is not None:
            (folder / lr).mkdir()
            run_record.write(make(score, held_out and held_out[lr], lr=float(lr)), folder / lr)
    return made


@pytest.mark.parametrize(
    ("scores", "held_out", "choice"),
    [
        ({"1e-4": 0.4, "1e-3": 0.6, "1e-2": 0.5}, None, Choice("1e-3", "the best of 3 (3 of 3 runs finished)")),
        ({"1e-4": 0.4, "1e-3": 0.6, "1e-2": None}, None, Choice("1e-3", "the best of 2 (2 of 3 ")),
        ({"1e-4": 0.6, "1e-3": 0.6, "1e-2": 0.6}, None, Choice("1e-4", "the best of 3", beyond="1e-5")),
        ({"2e-5": 0.6, "5e-5": 0.5}, None, Choice("2e-5", "the best of 2", beyond="8e-6")),
        ({"1e-3": 0.5, "1.01e-3": 0.6}, None, Choice("1.01e-3", "the best of 2", beyond="1.02e-3")),
        (
            {"1e-4": 0.4, "1e-3": 0.5, "1e-2": 0.6},
            {"1e-4": 0.1, "1e-3": 0.3, "1e-2": 0.2},
            Choice("1e-3", "the best of 3 on the held-out split"),
        ),
        ({"1e-4": None, "1e-3": None}, None, Choice(None, "left out, none of the 2 runs to choose from is finished")),
    ],
)
def test_the_choice_is_the_report_s_and_later_stages_follow_it(
    scores: dict[str, float | None], held_out: dict[str, float] | None, choice: Choice, tmp_path: Path
) -> None:
    runs = [(job, tmp_path / job["optim.lr"]) for job in tried(tmp_path, scores, held_out)]
    runs += runs[:1]  # of two stages
    made = sweep.choose(runs)
    assert (made.lr, made.beyond) == (choice.lr, choice.beyond)
    assert choice.why in made.why
    later = {"task": "cola", "method": "lora", "seed": "1"}
    for rate, lr in ((sweep.CHOSEN, choice.lr), (sweep.WIDENED, choice.beyond)):
        derived, choices = sweep.derived(rate, [later], runs)
        assert derived == ([later | {"optim.lr": lr}] if lr else [])
        assert {sweep.name_of(cell): each for cell, each in choices.items()} == {"cola lora": made}
        assert ("the edge of its grid" in made.why) == (choice.beyond is not None)


def test_an_interrupted_run_may_still_be_the_best(tmp_path: Path) -> None:
    runs = [(job, tmp_path / job["optim.lr"]) for job in tried(tmp_path, {"1e-4": 0.4, "1e-3": 0.6})]
    run_record.write(make(lr=1e-4, status="cancelled"), tmp_path / "1e-4")
    assert sweep.choose(runs) == Choice(None, "left out, in training or interrupted: 1 of the 2 runs to choose from")


def test_a_label_names_the_run_and_what_else_differs() -> None:
    key = make(seed=3, lr=1.2e-3).key
    run, other = {"task": "cola", "seed": "3", "method.alpha": "8"}, {"task": "rte", "seed": "1", "method.alpha": "16"}
    assert sweep.label_of(key, run, [run]) == "cola lora 0.3M lr 1.2e-3 seed 3"
    assert sweep.label_of(key, run, [run, other]) == "cola lora 0.3M lr 1.2e-3 seed 3 method.alpha=8"


def test_a_record_from_before_is_not_what_became_of_a_forced_run(tmp_path: Path) -> None:
    """Whatever the clock of the node says that wrote it."""
    earlier = make(progress={"updated": 5.0})
    for updated, outcome in ((5.0, FAILED), (4.0, DONE)):
        run_record.write(make(progress={"updated": updated}), tmp_path)
        assert outcome_on_disk(SweepRun("a", tmp_path, earlier))[0] == outcome
    assert outcome_on_disk(SweepRun("a", tmp_path))[0] == DONE


def test_the_report_of_a_sweep_without_a_table_shows_its_runs() -> None:
    for name in ("v1.2", "paper"):  # the latter is a folder beside the tables
        assert report_command([name], make().key, Path("results")) == "adalora-report runs"


def test_the_report_of_measurements_takes_no_data_source() -> None:
    assert report_command(["table15"], make().key, Path("results")) == "adalora-report table15 --backbone minilm"


def test_a_summary_names_each_failure_its_folder_and_the_report(tmp_path: Path) -> None:
    failed = make(seed=1, status="failed")
    failed.error = "NonFiniteLossError: the loss is nan at step 3"
    run_record.write(failed, tmp_path)
    ledger = Ledger(report=report_command(["table1"], failed.key, Path("my results")))
    assert ledger.summary() is None
    for seed, run in enumerate((SweepRun("[1/4] a"), SweepRun("[2/4] b", tmp_path), SweepRun("[3/4] c"))):
        ledger.sweep[(f"seed={seed}",)] = run
        ledger.outcomes[(f"seed={seed}",)] = [(DONE, 0), (FAILED, 1), (REFUSED, 2)][seed]
    ledger.refusals[("seed=2",)] = "no"
    ledger.sweep[("seed=3",)] = SweepRun("[4/4] d")
    assert ledger.code == 2
    assert str(ledger.summary()).splitlines() == [
        f"failed: [2/4] b: NonFiniteLossError: the loss is nan at step 3; {tmp_path}",
        "refused: [3/4] c: no",
        "report: adalora-report table1 --backbone minilm --data local '--results=my results'",
        "sweep: 1 done, 1 failed, 1 refused, 1 not started",
    ]
