"""Multiruns from the outside: what is trained, what is passed over, what one bad run does to the others."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fake_records
import pytest
from conftest import ROOT, TINY, Cli, Outcome, find_runs, ok
from fake_records import make

from adalora_repro.config import resolve as planning
from adalora_repro.config.plan import Plan
from adalora_repro.errors import EXIT_BAD_INPUT, EXIT_FAILED, EXIT_OK
from adalora_repro.records import lock
from adalora_repro.records.lock import Lock

GRID = "optim.lr=1e-4,1e-3,1e-2"
STAGES = ("-m", "+sweep=[table1,stages]", "task=rte", "method=lora", "budget=0.3M", GRID)


def counts(done: Outcome) -> str:
    """What the summary counts."""
    last = done.out.splitlines()[-1]
    assert last.startswith("sweep: ")
    return last.removeprefix("sweep: ")


class Trainer:
    """Training without training: ``score(cfg)`` is what a run measures, an exception how it fails."""

    def __init__(self) -> None:
        self.score: Callable[[Any], float] = lambda cfg: 0.5
        self.trained: list[tuple[str, float, int]] = []

    def execute(self, plan: Plan) -> int:
        self.trained.append((plan.cfg.method.name, plan.cfg.optim.lr, plan.cfg.seed))
        (plan.folder / lock.NAME).unlink(missing_ok=True)  # of a dead process
        try:
            save(plan.key, self.score(plan.cfg))
        except ValueError as error:
            save(plan.key, 0.0, str(error))
            return EXIT_FAILED
        return EXIT_OK


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> Trainer:
    from adalora_repro.training import runner

    made = Trainer()
    monkeypatch.setattr(runner, "execute", made.execute)
    return made


def save(key: dict[str, Any], score: float, error: str = "", status: str = "ok", updated: float = 0.0) -> None:
    """The record of the run with this key, in its place."""
    record = make(score, task="rte", status="failed" if error else status, progress={"updated": updated})
    record.key, record.error = dict(key), error or None
    fake_records.save(Path("results"), record)


@pytest.fixture
def plans(tiny: Cli, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Plan]]:
    """The plans of a sweep's runs."""

    def of(*words: str) -> list[Plan]:
        made: list[Plan] = []
        named = planning.named
        with monkeypatch.context() as patch:
            patch.setattr(planning, "named", lambda *args: made.append(named(*args)) or made[-1])
            assert tiny("-m", *words, "dry_run=true").code == EXIT_OK
        return list({plan.folder: plan for plan in made}.values())

    return of


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """As if another process trained there."""
    folder.mkdir(parents=True)
    lease = Lock(folder)
    lease.take(print)
    yield
    lease.release()


# Which runs


def test_a_table_s_sweep_trains_its_cells_once_and_says_which_line_is_whose(tiny: Cli, trainer: Trainer) -> None:
    words = ("-m", "+sweep=table1", "task=rte", "method=bitfit,lora")
    done = ok(tiny(*words))
    assert [(run.record.key["method"], run.record.key["budget"]) for run in find_runs()] == [
        ("bitfit", "bitfit"),
        ("lora", "0.3M"),
        ("lora", "1.2M"),
    ]
    assert counts(done) == "3 done"
    assert done.out.splitlines()[-2] == "report: adalora-report table1 --backbone tiny-bert --data sample"
    (left,) = Path("results/sweeps").iterdir()
    assert [path.name for path in left.iterdir()] == ["multirun.yaml"]
    again = tiny(*words)
    labels = ["[1/3] rte bitfit lr 5e-4 seed 0", "[2/3] rte lora 1.2M lr 5e-4 seed 0", "[3/3] rte lora 0.3M lr 5e-4"]
    assert all(line.startswith(label) for line, label in zip(again.out.splitlines(), labels, strict=False))
    assert again.out.count(" already done: results/runs/") == 3
    assert counts(again) == "3 already done"
    assert len(list(Path("results/sweeps").iterdir())) == 1  # nothing was launched
    assert counts(tiny(*words, "force=true", "method=bitfit")) == "1 done"


@pytest.mark.slow
def test_five_hundred_finished_runs_are_passed_over_with_little_work(
    tiny: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of the twelve cells is resolved once, not each of the runs; without the module that imports torch."""
    words = ("-m", "+sweep=table1", "task=rte", f"seed={','.join(map(str, range(42)))}")
    with monkeypatch.context() as patch:
        patch.setattr(planning, "finished", lambda plan: save(plan.key, 0.5) or "0.5")
        assert counts(tiny(*words)) == "504 already done"
    monkeypatch.setitem(sys.modules, "adalora_repro.training.runner", None)
    next(iter(find_runs())).folder.joinpath("metrics.json").unlink()
    resolve, resolved = planning.resolve, []
    monkeypatch.setattr(planning, "resolve", lambda *args, **more: resolved.append(args) or resolve(*args, **more))
    done = tiny(*words)  # one to train, which the missing module makes impossible
    assert done.code == EXIT_FAILED
    assert len(resolved) == 12
    assert counts(done) == "503 already done, 1 failed"


def test_a_run_in_several_spellings_is_one_job(tiny: Cli, trainer: Trainer) -> None:
    done = tiny("-m", "task=rte", "method=lora", "optim.lr=5e-4,0.0005", "seed=0,0")
    assert trainer.trained == [("lora", 5e-4, 0)]
    assert done.out.splitlines()[0] == "3 of 4 runs repeat another of this sweep and are left out"
    assert counts(done) == "1 done"


# One bad run


def test_a_failing_run_does_not_stop_the_others_and_is_tried_again(tiny: Cli, trainer: Trainer) -> None:
    def score(cfg: Any) -> float:
        if cfg.seed == 0:
            raise ValueError("loss is nan")
        if cfg.seed == 1:
            raise RuntimeError("a bug")
        return 0.5

    trainer.score = score
    done = tiny("-m", "task=rte", "method=lora", "seed=0,1,2,-1", "+eval.max_examples=8")
    assert done.code == EXIT_BAD_INPUT  # the largest
    assert counts(done) == "1 done, 2 failed, 1 refused"
    assert "RuntimeError: a bug" in done.err
    summary = done.out.splitlines()[-5:]
    (folder,) = (str(run.folder) for run in find_runs() if run.record.key["seed"] == 0)
    assert f"failed: [1/4] rte lora 0.3M lr 5e-4 seed 0: loss is nan; {folder}" in summary
    (refused,) = (line for line in summary if line.startswith("refused: [4/4] "))
    assert "seed=-1" in refused
    assert "seed must be 0 or more, not -1" in refused
    trainer.score = lambda cfg: 0.5
    assert (
        counts(tiny("-m", "task=rte", "method=lora", "seed=0,1,2", "+eval.max_examples=8")) == "2 done, 1 already done"
    )


def test_a_reader_who_has_seen_enough_is_no_error(tmp_path: Path) -> None:
    process = started(["-m", *TINY, "task=rte", "method=bitfit", "seed=0,1", "dry_run=true"], tmp_path)
    process.stdout.close()
    assert "Traceback" not in process.stderr.read()
    assert process.wait(timeout=300) == EXIT_OK


def started(words: list[str], folder: Path) -> subprocess.Popen[str]:
    environment = {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "adalora_repro.cli.run", *words],
        cwd=folder,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )


# Several processes


def test_what_another_process_has_is_skipped_in_a_sweep_and_refused_alone(
    tiny: Cli, plans: Callable[..., list[Plan]]
) -> None:
    words = ("task=rte", "method=bitfit")
    (plan,) = plans(*words)
    with held(plan.folder):
        done = ok(tiny("-m", *words, "seed=0,1"))
        assert f"skipped: another process is training {plan.folder}\n" in done.out
        assert counts(done) == "1 done, 1 skipped (another process has them)"
        done = tiny(*words, "seed=0")
        assert (done.code, "another process" in done.err) == (EXIT_BAD_INPUT, True)
    assert counts(tiny("-m", *words, "seed=0,1")) == "1 done, 1 already done"


@pytest.mark.parametrize(
    ("error", "more", "summary"), [("loss is nan", [], "failed"), ("", ["force=true"], "already done")]
)
def test_a_run_that_ended_in_another_process_meanwhile_is_not_repeated(
    tiny: Cli, trainer: Trainer, plans: Callable[..., list[Plan]], error: str, more: list[str], summary: str
) -> None:
    """A run that ended before the command began is: see above."""
    words = ("task=rte", "method=lora", "seed=0,1")
    _, second = plans(*words)
    # while the first trains, another process trains the second
    trainer.score = lambda cfg: save(second.key, 0.5, error, updated=time.time() + 1) or 0.5
    done = tiny("-m", *words, *more)
    assert [seed for _, _, seed in trainer.trained] == [0]
    assert counts(done) == f"1 done, 1 {summary}"


@pytest.mark.slow
def test_two_processes_share_stages(tmp_path: Path) -> None:
    """Each run is trained once, and both choose the learning rate from all the runs of the first stage."""
    words = [*STAGES, "seed=0,1,2", *TINY, f"data.cache_dir={tmp_path / 'cache'}"]
    both = [started(words, tmp_path) for _ in range(2)]
    printed = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [EXIT_OK, EXIT_OK], printed
    lines = [line for out, _ in printed for line in out.splitlines()]
    done = [line for line in lines if " done: " in line and " already done: " not in line]
    assert len(done) == len(set(done)) == 5
    runs = find_runs(tmp_path / "results")
    assert sorted(run.record.key["seed"] for run in runs) == [0, 0, 0, 1, 2]
    assert len({run.record.key["lr"] for run in runs if run.record.key["seed"]}) == 1
    choices = [line for line in lines if line.startswith("stage 2, ")]
    assert len(choices) == 2
    assert len({*choices}) == 1
    assert "the best of 3 (3 of 3 runs finished)" in choices[0]
    assert not list(tmp_path.rglob("*.old-*"))


@pytest.mark.parametrize("ends", ["finished", "failed", "killed", "gone"])
def test_a_stage_waits_for_the_run_of_another_process(
    tiny: Cli,
    trainer: Trainer,
    plans: Callable[..., list[Plan]],
    monkeypatch: pytest.MonkeyPatch,
    ends: str,
) -> None:
    """The other process finishes the run, which is the best; or fails; or is killed, or its machine is, and the run is
    trained here."""
    trainer.score = lambda cfg: {1e-4: 0.4, 1e-3: 0.6, 1e-2: 0.5}[cfg.optim.lr] - 0.3 * (cfg.seed > 0)
    _, other, _ = plans("task=rte", "method=lora", "budget=0.3M", GRID)

    def wait(_: float) -> None:
        path = other.folder / ".lock"
        if ends != "gone":
            path.unlink()
        elif path.read_text(encoding="utf-8") != "of another host":  # nobody renews it
            path.write_text("of another host", encoding="utf-8")
        if ends == "finished":
            save(other.key, 0.6)
        elif ends == "failed":
            save(other.key, 0.0, "loss is nan")

    with held(other.folder):
        monkeypatch.setattr(time, "sleep", wait)
        monkeypatch.setattr(lock, "LEASE_S", 0.01)
        done = tiny(*STAGES, "seed=0,1,2")
    assert done.code == EXIT_OK, done.err
    assert "stage 2: waiting for 1 run that other processes are training\n" in done.out
    taken_over = [(1e-3, 0)] if ends in ("killed", "gone") else []
    best = 1e-2 if ends == "failed" else 1e-3
    trained = [(lr, seed) for _, lr, seed in trainer.trained]
    assert trained == [(1e-4, 0), (1e-2, 0), *taken_over, (best, 1), (best, 2)]
    skipped = "" if taken_over else ", 1 skipped (another process has them)"
    assert counts(done) == f"{len(trained)} done{skipped}"


# Stages; the choices themselves are in tests/unit/test_sweep_rules.py


def test_stages_choose_a_learning_rate_from_the_first(tiny: Cli, trainer: Trainer) -> None:
    trainer.score = lambda cfg: {1e-4: 0.4, 1e-3: 0.6, 1e-2: 0.5}[cfg.optim.lr] - 0.3 * (cfg.seed > 0)
    done = ok(tiny(*STAGES))
    assert [(lr, seed) for _, lr, seed in trainer.trained] == [
        *((lr, 0) for lr in (1e-4, 1e-3, 1e-2)),
        *((1e-3, seed) for seed in (1, 2, 3, 4)),
    ]
    assert "stage 2, rte lora 0.3M: optim.lr=1e-3, the best of 3 (3 of 3 runs finished)\n" in done.out
    assert counts(done) == "7 done"
    trainer.trained.clear()
    gone = next(run for run in find_runs() if run.record.key["seed"] == 3)
    (gone.folder / "metrics.json").write_text("{", encoding="utf-8")
    assert "total: 7 runs, 6 done, 0 to do, 1 cannot run;" in tiny(*STAGES, "dry_run=true").out
    (gone.folder / "metrics.json").unlink()
    assert counts(tiny(*STAGES)) == "1 done, 6 already done"
    assert trainer.trained == [("lora", 1e-3, 3)]
    assert counts(tiny(*STAGES, "seed=2,4")) == "2 already done"  # the choice is still the first stage's
    assert counts(tiny(*STAGES, "seed=0")) == "3 already done"
    assert "total: 3 runs, 0 done, 3 to do" in tiny(*STAGES, "seed=0", "force=true", "dry_run=true").out


def test_a_stage_goes_one_rate_beyond_an_edge_for_the_methods_whose_best_is_there(
    tiny: Cli, trainer: Trainer, tmp_path: Path
) -> None:
    """LoRA's best is the largest of its grid, BitFit's in the middle, full fine-tuning's the smallest.

    The runs of seed 0 in the last stage are those of the stages before: also with force=true they are trained once.
    """
    scores = {
        "lora": {1e-4: 0.4, 1e-3: 0.5, 1e-2: 0.6, 0.1: 0.7},
        "bitfit": {1e-4: 0.4, 1e-3: 0.6, 1e-2: 0.5},
        "full": {2e-5: 0.6, 5e-5: 0.5, 8e-6: 0.4},
    }
    trainer.score = lambda cfg: scores[cfg.method.name][cfg.optim.lr]
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "small.yaml").write_text(
        """# @package _global_
hydra:
  sweeper:
    cells:
      small:
        - {task: rte, method: "lora,bitfit", budget: 0.3M, optim.lr: "1e-4,1e-3,1e-2"}
        - {task: rte, method: full, optim.lr: "2e-5,5e-5"}
    stages:
      - {seed: "0"}
      - {seed: "0", optim.lr: widened}
      - {seed: "0,1", optim.lr: chosen}
""",
        encoding="utf-8",
    )
    words = (f"--config-dir={tmp_path}", "-m", "+sweep=small")
    done = ok(tiny(*words, "force=true"))
    assert len(trainer.trained) == 13
    assert counts(done) == "13 done"
    assert trainer.trained[8:10] == [("lora", 0.1, 0), ("full", 8e-6, 0)]
    lines = [line.partition(":")[0] for line in done.out.splitlines() if line.endswith("the edge of its grid")]
    assert [line for line in lines if "stage 2" in line] == ["stage 2, rte lora 0.3M", "stage 2, rte full"]
    assert trainer.trained[10:] == [("lora", 0.1, 1), ("bitfit", 1e-3, 1), ("full", 2e-5, 1)]
    assert counts(tiny(*words, "seed=1")) == "3 already done"  # the wider grid still counts


def test_a_cell_without_a_first_stage_is_left_out_by_name(tiny: Cli, trainer: Trainer) -> None:
    def score(cfg: Any) -> float:
        if cfg.method.name == "lora" or cfg.optim.lr == 1e-2:
            raise ValueError("loss is nan")
        return 0.5 + cfg.optim.lr

    trainer.score = score
    done = tiny("-m", "+sweep=[table1,stages]", "task=rte", "method=lora,bitfit", GRID, "seed=0,1")
    assert done.code == EXIT_FAILED
    assert "stage 2, rte lora 1.2M: left out, none of the 3 runs to choose from is finished\n" in done.out
    assert "stage 2, rte bitfit: optim.lr=1e-3, the best of 2 (2 of 3 runs finished)\n" in done.out
    assert counts(done) == "3 done, 7 failed, 2 left out"
