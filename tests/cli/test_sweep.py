"""Multiruns from the outside: what is trained, what is passed over, what one bad run does to the others."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, TINY, Outcome, find_runs
from fake_records import make

from adalora_repro.config import resolve as planning
from adalora_repro.config.plan import Plan
from adalora_repro.errors import EXIT_BAD_INPUT, EXIT_FAILED, EXIT_OK
from adalora_repro.records import lock as locks
from adalora_repro.records import run_record

Cli = Callable[..., Outcome]
GRID = "optim.lr=1e-4,1e-3,1e-2"
STAGES = ("-m", "+sweep=[table1,stages]", "task=rte", "method=lora", "budget=0.3M", GRID)


def last_line(done: Outcome) -> str:
    return done.out.splitlines()[-1]


def first_words(done: Outcome) -> list[str]:
    return [line.partition(":")[0] for line in done.out.splitlines()]


def give_scores(
    monkeypatch: pytest.MonkeyPatch, score: Callable[[Any], float], held_out: Callable[[Any], float] | None = None
) -> None:
    """Training without training: ``score(cfg)`` is what a run measures, an exception how it fails."""
    from adalora_repro.training import runner

    def execute(plan: Plan) -> int:
        plan.folder.mkdir(parents=True)
        try:
            value = score(plan.cfg)
        except ValueError as error:
            print(f"failed: {error}", file=sys.stderr)
            return EXIT_FAILED
        save(plan, value, None if held_out is None else held_out(plan.cfg))
        return EXIT_OK

    monkeypatch.setattr(runner, "execute", execute)


def save(plan: Plan, score: float, held_out: float | None = None) -> None:
    record = make(score, task="rte")
    if held_out is not None:
        record.final["holdout"] = {"accuracy": held_out}  # type: ignore[index]
    record.key = plan.key
    plan.folder.mkdir(parents=True, exist_ok=True)
    run_record.write(record, plan.folder)


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """As if another process trained there."""
    folder.mkdir(parents=True)
    with (folder / ".lock").open("w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
        (folder / ".lock").unlink()


# Tables


def test_a_table_s_sweep_trains_its_cells_once(tiny: Cli) -> None:
    words = ("-m", "+sweep=table1", "task=rte", "method=full,lora", "budget=0.3M,full")
    done = tiny(*words)
    assert done.code == EXIT_BAD_INPUT  # full is no budget
    assert "budget in table1 'full'; valid: 1.2M, 0.6M, 0.3M" in done.err
    assert find_runs() == []
    words = ("-m", "+sweep=table1", "task=rte", "method=bitfit,lora")
    done = tiny(*words)
    assert done.code == EXIT_OK, done.err
    assert [(run.record.key["method"], run.record.key["budget"]) for run in find_runs()] == [
        ("bitfit", "bitfit"),
        ("lora", "0.3M"),
        ("lora", "1.2M"),
    ]
    assert last_line(done) == "sweep: 3 done"
    (left,) = Path("results/sweeps").iterdir()
    assert [path.name for path in left.iterdir()] == ["multirun.yaml"]
    again = tiny(*words)
    assert again.code == EXIT_OK
    assert first_words(again) == ["already done"] * 3 + ["sweep"]
    assert last_line(again) == "sweep: 3 already done"
    assert len(list(Path("results/sweeps").iterdir())) == 1  # nothing was launched
    forced = tiny(*words, "force=true", "method=bitfit")
    assert last_line(forced) == "sweep: 1 done"


def test_a_sweep_without_multirun_is_refused(tiny: Cli) -> None:
    done = tiny("+sweep=lr", "task=rte")
    assert done.code == EXIT_BAD_INPUT
    assert done.err == "adalora-run: error: +sweep=… stands for several runs: adalora-run -m +sweep=…\n"


def test_five_hundred_finished_runs_are_passed_over_with_little_work(
    tiny: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of the twelve cells is resolved once, not each of the runs; without the module that imports torch."""
    words = ("-m", "+sweep=table1", "task=rte", f"seed={','.join(map(str, range(42)))}")
    with monkeypatch.context() as patch:
        patch.setattr(planning, "finished", lambda plan: save(plan, 0.5) or "0.5")
        assert last_line(tiny(*words)) == "sweep: 504 already done"
    monkeypatch.setitem(sys.modules, "adalora_repro.training.runner", None)
    resolve, resolved = planning.resolve, []
    with monkeypatch.context() as patch:
        patch.setattr(planning, "resolve", lambda *args: resolved.append(args) or resolve(*args))
        done = tiny(*words)
    assert len(resolved) == 12
    assert done.code == EXIT_OK, done.err
    assert first_words(done) == ["already done"] * 504 + ["sweep"]
    next(iter(find_runs())).folder.joinpath("metrics.json").unlink()
    done = tiny(*words)  # one to train, which the missing module makes impossible
    assert done.code == EXIT_FAILED
    assert last_line(done) == "sweep: 503 already done, 1 failed"


# One bad run


def test_a_failing_run_does_not_stop_the_others(tiny: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def score(cfg: Any) -> float:
        if cfg.seed == 0:
            raise ValueError("loss is nan")
        if cfg.seed == 1:
            raise RuntimeError("a bug")
        return 0.5

    give_scores(monkeypatch, score)
    done = tiny("-m", "task=rte", "method=lora", "seed=0,1,2,-1")
    assert done.code == EXIT_BAD_INPUT  # the largest
    assert last_line(done) == "sweep: 1 done, 2 failed, 1 refused"
    assert "RuntimeError: a bug" in done.err
    assert "failed: loss is nan" in done.err
    (line,) = (line for line in done.err.splitlines() if "seed must be 0 or more, not -1 (run: " in line)
    assert {"task=rte", "seed=-1"} <= set(line.split())  # which of them
    assert [run.record.key["seed"] for run in find_runs()] == [2]


def test_a_failed_run_is_tried_again(tiny: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    from adalora_repro.training import loop as training_loop

    with monkeypatch.context() as patch:
        patch.setattr(training_loop, "step", lambda *_: 1 / 0)
        done = tiny("-m", "task=rte", "method=lora", "seed=0,1")
    assert done.code == EXIT_FAILED
    assert last_line(done) == "sweep: 2 failed"
    done = tiny("-m", "task=rte", "method=lora", "seed=0,1")
    assert done.code == EXIT_OK, done.err
    assert last_line(done) == "sweep: 2 done"


def test_a_reader_who_has_seen_enough_does_not_stop_a_sweep(tmp_path: Path) -> None:
    words = ["-m", *TINY, "task=rte", "method=bitfit", "seed=0,1", f"data.cache_dir={tmp_path / 'cache'}"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "adalora_repro.cli.run", *words]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    err = process.stderr.read()
    assert process.wait(timeout=300) == EXIT_OK, err
    assert "Traceback" not in err
    assert [run.record.status for run in find_runs(tmp_path / "results")] == ["ok", "ok"]


# Several processes


def test_what_another_process_has_is_skipped_in_a_sweep_and_refused_alone(
    tiny: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("task=rte", "method=bitfit")
    plan = tiny(*words, "seed=0", "dry_run=true").out
    (line,) = (line for line in plan.splitlines() if line.startswith("folder: "))
    folder = Path(line.removeprefix("folder: "))
    with held(folder):
        done = tiny("-m", *words, "seed=0,1")
        assert done.code == EXIT_OK, done.err
        assert f"skipped: another process is training {folder}\n" in done.out
        assert last_line(done) == "sweep: 1 done, 1 skipped (another process has them)"
        with monkeypatch.context() as patch:  # taken after the sweep had looked
            looks = iter([False, True])
            patch.setattr(locks, "held", lambda *_, **__: next(looks))
            done = tiny("-m", *words, "seed=0,1")
        assert done.code == EXIT_OK, done.err
        assert last_line(done) == "sweep: 1 already done, 1 skipped (another process has them)"
        done = tiny(*words, "seed=0")
        assert done.code == EXIT_BAD_INPUT
        assert "another process" in done.err
    done = tiny("-m", *words, "seed=0,1")
    assert last_line(done) == "sweep: 1 done, 1 already done"


def lines_of_two_processes(words: list[str], folder: Path) -> list[str]:
    """What two processes of the same command print, started together in ``folder``; both must end well."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "adalora_repro.cli.run", *words]
    both = [
        subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )
        for _ in range(2)
    ]
    printed = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [EXIT_OK, EXIT_OK], printed
    return [line for out, _ in printed for line in out.splitlines()]


def test_two_processes_share_a_sweep(tmp_path: Path) -> None:
    """Each run is trained once, both end well."""
    words = ["-m", *TINY, "task=rte", "method=bitfit", "seed=0,1,2", f"data.cache_dir={tmp_path / 'cache'}"]
    lines = lines_of_two_processes(words, tmp_path)
    done = [line for line in lines if line.startswith("done: ")]
    assert len(done) == len(set(done)) == 3
    assert len(find_runs(tmp_path / "results")) == 3
    assert not list(tmp_path.rglob("*.old-*"))


# Stages


def test_stages_choose_a_learning_rate_from_the_first(tiny: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = []

    def score(cfg: Any) -> float:
        trained.append((cfg.optim.lr, cfg.seed))
        return {1e-4: 0.4, 1e-3: 0.6, 1e-2: 0.5}[cfg.optim.lr] - 0.3 * (cfg.seed > 0)  # lower: no new choice

    give_scores(monkeypatch, score)
    done = tiny(*STAGES)
    assert done.code == EXIT_OK, done.err
    assert trained == [(1e-4, 0), (1e-3, 0), (1e-2, 0), (1e-3, 1), (1e-3, 2), (1e-3, 3), (1e-3, 4)]
    assert "stage 2, rte lora 0.3M: optim.lr=1e-3, the best of 3 (3 of 3 runs finished)\n" in done.out
    assert last_line(done) == "sweep: 7 done"
    trained.clear()
    gone = next(run for run in find_runs() if run.record.key["seed"] == 3)
    (gone.folder / "metrics.json").unlink()
    gone.folder.rmdir()
    again = tiny(*STAGES)
    assert trained == [(1e-3, 3)]
    assert last_line(again) == "sweep: 1 done, 6 already done"
    trained.clear()
    assert last_line(tiny(*STAGES, "seed=2,4")) == "sweep: 2 already done"  # the choice is still the first stage's
    assert last_line(tiny(*STAGES, "seed=0")) == "sweep: 3 already done"
    assert trained == []


def test_stages_choose_on_the_held_out_split(tiny: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    give_scores(
        monkeypatch, lambda cfg: 0.9 - cfg.optim.lr, lambda cfg: {1e-4: 0.4, 1e-3: 0.6, 1e-2: 0.5}[cfg.optim.lr]
    )
    done = tiny(*STAGES)
    assert done.code == EXIT_OK, done.err
    words = "optim.lr=1e-3, the best of 3 on the held-out split (3 of 3 runs finished)\n"
    assert f"stage 2, rte lora 0.3M: {words}" in done.out
    tried = [run.record.key["lr"] for run in find_runs()]
    assert sorted(tried) == [1e-4, *[1e-3] * 5, 1e-2]


def test_a_stage_goes_one_rate_beyond_an_edge_for_the_methods_whose_best_is_there(
    tiny: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """LoRA's best is the largest of its grid, BitFit's in the middle, full fine-tuning's the smallest."""
    scores = {
        "lora": {1e-4: 0.4, 1e-3: 0.5, 1e-2: 0.6, 0.1: 0.7},
        "bitfit": {1e-4: 0.4, 1e-3: 0.6, 1e-2: 0.5},
        "full": {2e-5: 0.6, 5e-5: 0.5, 8e-6: 0.4},
    }
    trained = []

    def score(cfg: Any) -> float:
        trained.append((cfg.method.name, cfg.optim.lr, cfg.seed))
        return scores[cfg.method.name][cfg.optim.lr]

    give_scores(monkeypatch, score)
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
      - {seed: "1", optim.lr: chosen}
""",
        encoding="utf-8",
    )
    words = (f"--config-dir={tmp_path}", "-m", "+sweep=small")
    done = tiny(*words)
    assert done.code == EXIT_OK, done.err
    assert trained[:8] == [
        *(("lora", lr, 0) for lr in (1e-4, 1e-3, 1e-2)),
        *(("bitfit", lr, 0) for lr in (1e-4, 1e-3, 1e-2)),
        *(("full", lr, 0) for lr in (2e-5, 5e-5)),
    ]
    assert trained[8:10] == [("lora", 0.1, 0), ("full", 8e-6, 0)]
    further = [line.partition(":")[0] for line in done.out.splitlines() if line.endswith("one rate further")]
    assert further == ["stage 2, rte lora 0.3M", "stage 2, rte full"]
    assert trained[10:] == [("lora", 0.1, 1), ("bitfit", 1e-3, 1), ("full", 2e-5, 1)]
    trained.clear()
    assert last_line(tiny(*words)) == "sweep: 13 already done"
    assert last_line(tiny(*words, "seed=1")) == "sweep: 3 already done"  # the wider grid still counts
    assert trained == []


def test_a_stage_may_follow_one_that_chose(tiny: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It chooses among the runs of all stages before: the rate with the most seeds, whatever its score."""
    trained = []

    def score(cfg: Any) -> float:
        trained.append((cfg.optim.lr, cfg.seed))
        return 0.5 + cfg.optim.lr - 0.3 * (cfg.seed > 0)

    give_scores(monkeypatch, score)
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "three.yaml").write_text(
        """# @package _global_
hydra:
  sweeper:
    params: {task: rte, method: bitfit, optim.lr: "1e-4,1e-3,1e-2"}
    stages:
      - {seed: "0"}
      - {seed: "1", optim.lr: chosen}
      - {seed: "2", optim.lr: widened}
      - {seed: "3", optim.lr: chosen}
""",
        encoding="utf-8",
    )
    done = tiny(f"--config-dir={tmp_path}", "-m", "+sweep=three")
    assert done.code == EXIT_OK, done.err
    assert trained == [(1e-4, 0), (1e-3, 0), (1e-2, 0), (1e-2, 1), (0.1, 2), (1e-2, 3)]


def test_the_choice_is_each_cell_s_own_and_an_edge_is_named(tiny: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    best = {"lora": 1e-2, "bitfit": 1e-3}
    trained = []

    def score(cfg: Any) -> float:
        trained.append((cfg.method.name, cfg.optim.lr, cfg.seed))
        return 0.5 + 0.1 * (cfg.optim.lr == best[cfg.method.name])

    give_scores(monkeypatch, score)
    done = tiny("-m", "+sweep=[table1,stages]", "task=rte", "method=lora,bitfit", GRID, "seed=0,1")
    assert done.code == EXIT_OK, done.err
    later = [run for run in trained if run[2]]
    assert later == [("bitfit", 1e-3, 1), ("lora", 1e-2, 1), ("lora", 1e-2, 1)]
    edges = [line for line in done.out.splitlines() if line.endswith("the edge of its grid: widen it")]
    assert [line.partition(":")[0] for line in edges] == ["stage 2, rte lora 1.2M", "stage 2, rte lora 0.3M"]


def test_a_cell_without_a_first_stage_is_left_out_by_name(tiny: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def score(cfg: Any) -> float:
        if cfg.method.name == "lora" or cfg.optim.lr == 1e-2:
            raise ValueError("loss is nan")
        return 0.5 + cfg.optim.lr

    give_scores(monkeypatch, score)
    words = ("-m", "+sweep=[table1,stages]", "task=rte", "method=lora,bitfit", GRID, "seed=0,1")
    done = tiny(*words, "results.dir=a")
    assert done.code == EXIT_FAILED
    assert "stage 2, rte lora 1.2M: left out, none of the 3 runs to choose from is finished\n" in done.out
    assert "stage 2, rte bitfit: optim.lr=1e-3, the best of 2 (2 of 3 runs finished), the edge" in done.out
    assert last_line(done) == "sweep: 3 done, 7 failed, 2 left out"


# Stages that several processes share


def test_two_processes_share_stages(tmp_path: Path) -> None:
    """Each run is trained once, and both choose the learning rate from all the runs of the first stage."""
    words = [*STAGES, "seed=0,1,2", *TINY, f"data.cache_dir={tmp_path / 'cache'}"]
    lines = lines_of_two_processes(words, tmp_path)
    done = [line for line in lines if line.startswith("done: ")]
    assert len(done) == len(set(done)) == 5
    runs = find_runs(tmp_path / "results")
    assert sorted(run.record.key["seed"] for run in runs) == [0, 0, 0, 1, 2]
    assert len({run.record.key["lr"] for run in runs if run.record.key["seed"]}) == 1
    choices = [line for line in lines if line.startswith("stage 2, ")]
    assert len(choices) == 2
    assert len({*choices}) == 1
    assert "the best of 3 (3 of 3 runs finished)" in choices[0]
    assert not list(tmp_path.rglob("*.old-*"))


@pytest.mark.parametrize("ends", ["finished", "failed", "killed"])
def test_a_stage_waits_for_the_run_of_another_process(tiny: Cli, monkeypatch: pytest.MonkeyPatch, ends: str) -> None:
    """The other process finishes the run, which is the best; or fails; or is killed, and the run is trained here."""
    scores = {1e-4: 0.4, 1e-3: 0.6, 1e-2: 0.5}
    trained = []

    def score(cfg: Any) -> float:
        trained.append((cfg.optim.lr, cfg.seed))
        return scores[cfg.optim.lr] - 0.3 * (cfg.seed > 0)

    plans = {}
    resolve = planning.named
    with monkeypatch.context() as patch:
        patch.setattr(planning, "named", lambda *args: plans.setdefault(args[1].optim.lr, resolve(*args)))
        tiny("-m", "task=rte", "method=lora", "budget=0.3M", GRID, "dry_run=true")
    other = plans[1e-3]

    def wait(_: float) -> None:
        (other.folder / ".lock").unlink()
        if ends == "finished":
            save(other, 0.6)
        elif ends == "failed":
            record = make(0.6, task="rte", status="failed")
            record.key, record.error = other.key, "loss is nan"
            run_record.write(record, other.folder)
        else:
            other.folder.rmdir()

    give_scores(monkeypatch, score)
    other.folder.mkdir(parents=True)
    with (other.folder / ".lock").open("w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        monkeypatch.setattr(time, "sleep", wait)
        done = tiny(*STAGES, "seed=0,1,2")
    assert done.code == EXIT_OK, done.err
    assert "stage 2: waiting for 1 runs that other processes are training\n" in done.out
    taken_over = [(1e-3, 0)] if ends == "killed" else []
    best = 1e-2 if ends == "failed" else 1e-3
    assert trained == [(1e-4, 0), (1e-2, 0), *taken_over, (best, 1), (best, 2)]
    skipped = "" if ends == "killed" else ", 1 skipped (another process has them)"
    assert last_line(done) == f"sweep: {len(trained)} done{skipped}"


def test_a_run_that_failed_in_another_process_meanwhile_is_not_tried_again(
    tiny: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that failed before the command began is tried: ``test_a_failed_run_is_tried_again``."""
    tried = []

    def score(cfg: Any) -> float:
        tried.append(cfg.seed)  # while this one trains, another process tries the second
        other = make(0.1, task="rte", status="failed")
        other.key, other.error = plans[1].key, "loss is nan"
        other.progress = {"updated": time.time() + 1}
        plans[1].folder.mkdir(parents=True, exist_ok=True)
        run_record.write(other, plans[1].folder)
        return 0.5

    plans = {}
    resolve = planning.named
    with monkeypatch.context() as patch:
        patch.setattr(planning, "named", lambda *args: plans.setdefault(args[1].seed, resolve(*args)))
        tiny("-m", "task=rte", "method=lora", "seed=0,1", "dry_run=true")
    give_scores(monkeypatch, score)
    done = tiny("-m", "task=rte", "method=lora", "seed=0,1")
    assert done.code == EXIT_FAILED
    assert tried == [0]
    assert last_line(done) == "sweep: 1 done, 1 failed"
