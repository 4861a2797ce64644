"""A sweep on a real SLURM: tasks are killed, preempted, requeued, and one fails; see slurm.sh, `make test-cluster`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from adalora_repro.records import run_record
from adalora_repro.records.run_record import RunRecord

pytestmark = pytest.mark.cluster
ROOT = Path(__file__).parents[2]
TINY = (
    "backbone=tiny-bert",
    "task.max_length=32",
    "data=sample",
    "data.sample_rows=64",
    "data.sample_validation_rows=32",
    "train.batch_size=8",
    "train.log_steps=2",
    "train.device=cpu",
    "method.schedule=scaled",
)
COMMAND = (
    *TINY,
    "task=cola",
    "method=adalora",
    "optim.lr=1e-2",
    "train.max_steps=36",
    "train.save_steps=6",
    "train.eval_steps=12",
)
SEEDS = ("seed=0,1,2,3,4,5",)
KILLED, PREEMPTED, REQUEUED, FAILING = 0, 1, 2, 3  # seeds
SLURM = (
    "hydra/launcher=slurm",
    "hydra.launcher.gpus_per_node=null",
    "hydra.launcher.cpus_per_task=1",
    "hydra.launcher.mem_gb=1",
    "hydra.launcher.timeout_min=30",
)
PATIENCE_S = 200.0
#: adalora-run in the tasks, but every step takes a while, so that it can be interrupted; seed 3 has a spoilt step
CUSTOM = f"""
import os
if os.environ.get("SUBMITIT_EXECUTOR") and os.environ.get("ADALORA_SLOW"):
    import sys, time, importlib.abc
    class Finder(importlib.abc.MetaPathFinder):
        def find_spec(self, name, path, target=None):
            if name == "adalora_repro.training.runner":
                sys.meta_path.remove(self)
                from adalora_repro.training import loop as train
                step = train.step
                def slowly(loop, batches):
                    time.sleep(float(os.environ["ADALORA_SLOW"]))
                    norm = step(loop, batches)
                    if loop.plan.cfg.seed == {FAILING}:
                        loop.losses[-1] = loop.losses[-1] * float("nan")
                    return norm
                train.step = slowly
    sys.meta_path.insert(0, Finder())
"""


@pytest.fixture(scope="module", autouse=True)
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("slurm")
    script = str(Path(__file__).with_name("slurm.sh"))
    before = os.environ.get("SLURM_CONF")
    os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
    try:
        subprocess.run([script, "up", str(folder)], check=True)
        yield
    finally:
        subprocess.run([script, "down", str(folder)], check=True)
        del os.environ["SLURM_CONF"]
        if before is not None:
            os.environ["SLURM_CONF"] = before


class Shell:
    """adalora-run and adalora-report in a folder, as a user starts them."""

    def __init__(self, folder: Path) -> None:
        (folder / "custom").mkdir()
        (folder / "custom" / "sitecustomize.py").write_text(CUSTOM, encoding="utf-8")
        self.folder = folder
        paths = [str(folder / "custom"), str(ROOT)]
        self.environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(paths),
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }

    def start(self, module: str, *words: str, slow: str = "") -> subprocess.Popen[str]:
        command = [sys.executable, "-m", f"adalora_repro.cli.{module}", *words]
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env=self.environment | {"ADALORA_SLOW": slow},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )

    def run(self, *words: str, slow: str = "") -> tuple[int, str, str]:
        process = self.start("run", *words, f"data.cache_dir={self.folder / 'cache'}", slow=slow)
        out, err = process.communicate(timeout=PATIENCE_S)
        return process.returncode, out, err

    def status(self) -> str:
        out, err = self.start("report", "status", "--backbone", "tiny-bert").communicate(timeout=PATIENCE_S)
        assert not err
        return out.partition("\n\nReproduction of Table 2")[0]

    def records(self, results: str = "results") -> dict[int, RunRecord]:
        found, refused = run_record.read_all(self.folder / results)
        assert not refused
        return {record.key["seed"]: record for _, record in found}

    def log(self, seed: int, results: str = "results") -> list[Any]:
        folder = run_record.run_folder(self.folder / results, self.records(results)[seed].key)
        return [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]

    def checkpoint(self, seed: int) -> bool:
        found = self.records()
        return (
            seed in found
            and (run_record.run_folder(self.folder / "results", found[seed].key) / "checkpoint.pt").exists()
        )


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


def until(what: Callable[[], object], describe: Callable[[], object] = lambda: "") -> None:
    end = time.monotonic() + PATIENCE_S
    while not what():
        assert time.monotonic() < end, describe()
        time.sleep(0.3)


def squeue() -> str:
    return subprocess.run(["squeue", "-r"], capture_output=True, text=True, check=True, encoding="utf-8").stdout


def test_a_sweep_of_which_some_tasks_are_ended(shell: Shell) -> None:
    cache = f"data.cache_dir={shell.folder / 'cache'}"
    sweep = shell.start("run", "-m", *COMMAND, *SEEDS, *SLURM, cache, slow="0.3")
    for seed in (KILLED, PREEMPTED, REQUEUED):
        until(lambda seed=seed: shell.checkpoint(seed), lambda: (squeue(), shell.records()))  # type: ignore[misc]
    os.kill(shell.records()[KILLED].progress["pid"], signal.SIGKILL)
    (submission,) = (shell.folder / "results").glob("sweeps/*/submitted-*.json")
    job = json.loads(submission.read_text(encoding="utf-8"))["job"]
    subprocess.run(["scancel", "--signal=USR2", f"{job}_{PREEMPTED}"], check=True)
    subprocess.run(["scontrol", "requeue", f"{job}_{REQUEUED}"], check=True)
    until(lambda: shell.records()[PREEMPTED].status == "cancelled")
    assert str(shell.records()[PREEMPTED].error).startswith("SIGUSR2: goes on if its job is requeued")
    out, err = sweep.communicate(timeout=PATIENCE_S)
    assert sweep.returncode == 143, (out, err)
    assert out.splitlines()[-1] == "sweep: 4 done, 1 failed, 1 interrupted"
    assert "failed: [4/6] cola adalora 0.3M lr 1e-2 seed 3: NonFiniteLossError: the loss is nan at step 0" in out
    assert err == ""
    logs = {
        seed: (submission.parent / "slurm" / f"{job}_{seed}_0_log.err").read_text(encoding="utf-8") for seed in range(6)
    }
    for seed in (PREEMPTED, REQUEUED):
        assert "resuming results/runs/" in logs[seed]
    assert "Caught signal SIGUSR2" in logs[PREEMPTED]
    assert all(shell.records()[seed].status == "ok" for seed in range(6) if seed not in (KILLED, FAILING))

    status = shell.status()
    assert "6 runs: 4 finished, 1 interrupted, 1 failed" in status
    assert "cola adalora 0.3M lr 1e-2 seed 3: step 2/36, NonFiniteLossError: the loss is nan at step 0" in status
    code, out, err = shell.run("-m", *COMMAND, *SEEDS, *SLURM, slow="0.01")
    assert (code, out.splitlines()[-1]) == (1, "sweep: 1 done, 4 already done, 1 failed"), err
    assert "6 runs: 5 finished, 1 failed" in shell.status()

    code, _, err = shell.run("-m", *COMMAND, "seed=0,1,2,4,5", "results.dir=undisturbed")
    assert code == 0, err
    found, expected = shell.records(), shell.records("undisturbed")
    for seed, record in expected.items():
        assert found[seed].measured() == record.measured()
        assert found[seed].rank_pattern is not None
        assert shell.log(seed) == shell.log(seed, "undisturbed")


def test_detached_runs_are_queued_then_run_then_cancelled(shell: Shell) -> None:
    words = ("-m", *COMMAND, *SLURM, "launch=detach", "hydra.launcher.array_parallelism=1")
    code, out, err = shell.run(*words, "seed=0,1", slow="0.5")
    assert (code, out.splitlines()[-1]) == (0, "sweep: 2 submitted"), err
    assert "Queued (" in shell.status()
    until(lambda: shell.checkpoint(0), squeue)
    assert "2 runs: 1 running, 1 queued" in shell.status()
    code, out, err = shell.run(*words, "seed=0,1,2", slow="0.5")
    assert out.splitlines()[-1] == "sweep: 1 submitted, 2 in the queue already"
    (line,) = (line for line in out.splitlines() if line.startswith("  scancel "))
    jobs = sorted((path.stem.partition("-")[2] for path in shell.folder.rglob("submitted-*.json")), key=int)
    assert line.split()[1] == jobs[-1]
    for job in jobs:
        subprocess.run(["scancel", job], check=True)
    until(lambda: shell.records()[0].status == "cancelled", squeue)
    assert shell.records()[0].error == "SIGTERM: the same command resumes it"
    until(lambda: squeue().count("\n") == 1, squeue)
    assert "Queued (" not in shell.status()
    code, out, err = shell.run("-m", *COMMAND, *SLURM, "seed=0")
    assert (code, out.splitlines()[-1]) == (0, "sweep: 1 done"), err
