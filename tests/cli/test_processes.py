"""Several processes: the run of one process, divided; real ones, started by torchrun and accelerate on the CPU.

Run as a script this file is one of them: it makes the runs listed in a file and writes down what it saw.
"""

import gzip
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT, TINY, Cli, Outcome, Run, at_call, only_run
from huggingface_hub import constants
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra

from adalora_repro.cli import run
from adalora_repro.errors import EXIT_FAILED, EXIT_OK, EXIT_TERMINATED
from adalora_repro.tasks import glue
from adalora_repro.training import loop as training_loop

PATIENCE_S = 150.0
SAME = [f"+backbone.architecture.{name}=0" for name in ("hidden_dropout_prob", "attention_probs_dropout_prob")]
#: without dropout; 43 examples in batches of 7: two processes do not divide 7, and the last batch has one example
GLUE = [
    *(word for word in TINY if word.split("=")[0] not in ("data.sample_rows", "data.sample_validation_rows")),
    *SAME,
    "task.classifier_dropout=0",
    "data.sample_rows=43",
    "data.sample_validation_rows=21",
    "train.batch_size=7",
    "train.max_steps=14",
    "train.log_steps=1",
    "train.eval_steps=7",
    "eval.batch_size=5",
    "optim.lr=1e-2",
    "optim.warmup_steps=0",
]
SQUAD = [
    *("task=squad", "method=adalora", "budget=0.08%", "task.max_length=192", "task.stride=32"),
    *("data.sample_rows=8", "data.sample_validation_rows=7", "train.batch_size=3", "train.max_steps=5"),
]
XSUM = [
    *("task=xsum", "backbone=tiny-bart", "method=adalora", "budget=0.26%", "task.max_length=64"),
    *("task.max_target_length=16", "task.num_beams=2", "+backbone.architecture.init_std=0.2"),
    *(f"+backbone.architecture.{name}=0" for name in ("dropout", "attention_dropout", "activation_dropout")),
    *("data.sample_rows=16", "data.sample_validation_rows=9", "eval.batch_size=2", "train.batch_size=5"),
    "train.max_steps=6",
]
ACCUMULATED = "train.grad_accumulation=2"


def words_of(*words: str) -> list[str]:
    """``GLUE`` with other words, of which a word given again wins."""
    keys = {word.lstrip("+").split("=")[0] for word in words}
    dropped = {word for word in SAME if any(word.startswith("backbone=") for word in words)}
    if any(word in ("task=squad", "task=xsum") for word in words):
        dropped.add("task.classifier_dropout=0")  # they have no classifier
    kept = [word for word in GLUE if word.lstrip("+").split("=")[0] not in keys and word not in dropped]
    return [*kept, *words]


CASES = {
    "adalora": words_of("task=stsb", "method=adalora"),
    "full": words_of("task=mnli", "method=full", "optim.lr=1e-3", "eval.batch_size=64"),  # fewer batches than processes
    "squad": words_of(*SQUAD),
    "xsum": words_of(*XSUM),
}
DIVERGED = words_of("task=cola", "method=lora", "optim.lr=1e30", "results.dir=diverged")
STOPPED = words_of("task=sst2", "method=adalora", "results.dir=stopped")


# -- a process of a run ---------------------------------------------------------------------------------------------


@contextmanager
def watched_steps() -> Iterator[list[dict[str, Any]]]:
    """What each optimizer step of this process did."""
    steps: list[dict[str, Any]] = []
    step = training_loop.step

    def watched(loop: training_loop.RunState, batches: list[Any]) -> torch.Tensor:
        norm = step(loop, batches)
        seen = {"loss": loop.losses[-1].item(), "grad_norm": norm.item(), "pieces": len(batches), "mask": None}
        seen["task_norm"] = loop.task_norm.item() if loop.log_due and loop.task_norm is not None else 0.0
        if hasattr(loop.method, "allocator"):
            seen["mask"] = loop.method.allocator._mask.tolist()
        steps.append(seen)
        return norm

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_loop, "step", watched)
        yield steps


def main(words: list[str]) -> int:
    """adalora-run, once more in this process."""
    store = ConfigStore.instance()
    repo = dict(store.repo)
    GlobalHydra.instance().clear()
    sys.argv = ["adalora-run", *words]
    try:
        return run.main()
    finally:
        store.repo = repo


def process(jobs: str) -> None:
    """What torchrun starts: makes the runs of a file, one after the other."""
    constants.HF_HUB_OFFLINE = True
    seen = []
    for job in json.loads(Path(jobs).read_text(encoding="utf-8")):
        with watched_steps() as steps, pytest.MonkeyPatch.context() as patch:
            if job["stop"] and os.environ["RANK"] == "1":  # the other one only hears of it
                at_call(patch, glue.Task, "predict", 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
            seen.append({"code": main(job["words"]), "steps": steps})
    Path(f"seen.{os.environ['RANK']}.json").write_text(json.dumps(seen), encoding="utf-8")


# -- starting several -----------------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def torchrun(count: int, *words: str) -> list[str]:
    return ["torch.distributed.run", f"--nproc_per_node={count}", f"--master_port={free_port()}", *words]


def accelerate(count: int, *words: str) -> list[str]:
    where = ("--num_machines", "1", "--mixed_precision", "no", "--main_process_port", str(free_port()))
    return ["accelerate.commands.launch", "--cpu", "--num_processes", str(count), *where, *words]


@contextmanager
def started(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    words = [sys.executable, "-m", *command]
    child = subprocess.Popen(
        words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8"
    )
    try:
        yield child
    finally:
        if child.poll() is None:  # the launcher ends its processes
            child.terminate()
            try:
                child.communicate(timeout=45)
            except subprocess.TimeoutExpired:
                child.kill()
                child.communicate()


def finish(child: subprocess.Popen[str]) -> Outcome:
    """A deadlock is a failure here."""
    out, err = child.communicate(timeout=PATIENCE_S)
    return Outcome(child.returncode, out, err)


def ours(err: str) -> list[str]:
    """The lines that adalora-run wrote, except for the launcher's, progress and the note about equal predictions."""
    lines = [line for line in err.splitlines() if line.startswith(("adalora-run:", "resuming"))]
    return [line for line in lines if not line.startswith("adalora-run: note: degenerate:")]


# -- the same run ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def divided(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[list[dict[str, Any]]], Outcome]:
    """All cases in two processes: their folder, what each process saw of each case, what was said."""
    work = tmp_path_factory.mktemp("divided")
    cache = f"data.cache_dir={work / 'cache'}"
    runs = [[*words, f"results.dir={name}"] for name, words in CASES.items()]
    runs += [[*CASES["adalora"], ACCUMULATED, "results.dir=accumulated"], runs[0], DIVERGED]
    jobs = [{"words": [*words, cache], "stop": False} for words in runs]
    left = [word for word in STOPPED if not word.startswith("results.dir")]
    jobs += [{"words": [*left, cache, "results.dir=left"], "stop": True}]
    jobs += [{"words": [*STOPPED, cache], "stop": stop} for stop in (True, False)]
    (work / "jobs.json").write_text(json.dumps(jobs), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(work)
        with started(torchrun(2, __file__, "jobs.json")) as child:
            done = finish(child)
    assert done.code == EXIT_OK, done.err
    return work, [json.loads((work / f"seen.{rank}.json").read_text(encoding="utf-8")) for rank in range(2)], done


@pytest.fixture
def alone(cli: Cli) -> Callable[..., list[dict[str, Any]]]:
    """The same in this process; what each step did."""

    def call(*words: str) -> list[dict[str, Any]]:
        with watched_steps() as steps:
            done = cli(*words)
        assert done.code == EXIT_OK, done.err
        return steps

    return call


def same_steps(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert len(found) == len(expected) > 0
    for name in ("loss", "grad_norm", "task_norm"):
        assert [step[name] for step in found] == pytest.approx([step[name] for step in expected], rel=1e-5), name
    assert [step["mask"] for step in found] == [step["mask"] for step in expected]  # exactly


def same_results(found: Run, expected: Run) -> None:
    """Records, logs and every example's prediction; numbers as close as float32 leaves correlations."""
    one, two = expected.record.measured(), found.record.measured()
    for measured in (one, two):
        for name in ("hash", "variant"):
            del measured["key"][name]
        measured["settings"].pop("train.grad_accumulation")
    assert two.pop("rank_pattern") == one.pop("rank_pattern")
    same_values(two, one)
    same_values(found.log, expected.log)
    for name in ("final", "best"):
        paths = sorted((expected.folder / name).iterdir())
        assert [path.name for path in sorted((found.folder / name).iterdir())] == [path.name for path in paths] != []
        for path in paths:
            same_values(content(found.folder / name / path.name), content(path))


def content(path: Path) -> Any:
    if path.suffix == ".json":
        return json.loads(path.read_bytes())
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    ids = [row["id"] for row in rows if "id" in row]
    assert len(set(ids)) == len(ids)
    for row in rows:
        for answer in row.get("n_best", ()):
            del answer["score"]  # all scores move with a bias that no loss sees; the probabilities stay
    return rows


def same_values(found: Any, expected: Any) -> None:
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for name in expected:
            same_values(found[name], expected[name])
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            same_values(one, other)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-4, abs=3e-4)
    else:
        assert found == expected


@pytest.mark.parametrize("case", CASES)
def test_two_processes_make_the_run_of_one(divided: Any, alone: Any, case: str) -> None:
    work, seen, _ = divided
    expected = alone(*CASES[case])
    number = list(CASES).index(case)
    for process in seen:
        assert process[number]["code"] == EXIT_OK
        same_steps(process[number]["steps"], expected)
    same_results(only_run(work / case), only_run())
    assert only_run(work / case).record.environment["processes"] == 2
    masks = [step["mask"] for step in expected]
    assert case == "full" or len({tuple(mask) for mask in masks}) > 1  # it pruned
    pieces = [[step["pieces"] for step in process[number]["steps"]] for process in seen]
    if case == "full":  # the last batch of an epoch has one example: the second process none
        assert sorted(zip(*pieces, strict=True)) == [(1, 0)] * 2 + [(1, 1)] * 12


def test_micro_batches_make_the_run_of_whole_batches(divided: Any, alone: Any) -> None:
    """k of B/k, in one process and in two."""
    work, seen, _ = divided
    whole = alone(*CASES["adalora"], "results.dir=whole")
    accumulated = alone(*CASES["adalora"], ACCUMULATED, "results.dir=accumulated")
    assert {step["pieces"] for step in accumulated} == {1, 2}
    same_steps(accumulated, whole)
    same_results(only_run("accumulated"), only_run("whole"))
    for process in seen:
        same_steps(process[len(CASES)]["steps"], whole)
    same_results(only_run(work / "accumulated"), only_run("whole"))


def test_a_finished_run_and_one_that_diverged_are_told_once(divided: Any) -> None:
    work, seen, done = divided
    for process in seen:
        again, diverged = process[len(CASES) + 1 : len(CASES) + 3]
        assert (again["code"], again["steps"]) == (EXIT_OK, [])
        assert diverged["code"] == EXIT_FAILED
        assert len(diverged["steps"]) == len(seen[0][len(CASES) + 2]["steps"])
    lines = [line.partition(":")[0] for line in done.out.splitlines()]
    assert lines == ["done"] * (len(CASES) + 1) + ["already done", "done"]
    note, failed, cancelled_and_left, cancelled, resumed = ours(done.err)
    assert note.startswith("adalora-run: note: ")  # SQuAD's T
    assert failed.startswith("adalora-run: failed: NonFiniteLossError: the loss is ")
    for line in (cancelled_and_left, cancelled):
        assert line.startswith("adalora-run: cancelled: SIGTERM")
    assert resumed.startswith("resuming stopped/")
    assert only_run(work / "diverged").record.status == "failed"
    assert "Traceback" not in done.err


def test_an_evaluation_gives_way_in_all_processes(divided: Any, alone: Any) -> None:
    work, seen, _ = divided
    expected = alone(*STOPPED)
    for process in seen:
        stopped, again = process[-2:]
        assert (stopped["code"], again["code"]) == (EXIT_TERMINATED, EXIT_OK)
        assert len(stopped["steps"]) == 7  # the first evaluation's
        same_steps(stopped["steps"] + again["steps"], expected)
    same_results(only_run(work / "stopped"), only_run("stopped"))


def test_what_two_processes_began_one_goes_on_with(divided: Any, alone: Any) -> None:
    work, seen, _ = divided
    left = str(work / "left")
    streams = torch.load(only_run(left).folder / "checkpoint.pt", weights_only=True)["rng"]
    assert len({bytes(stream["cpu"].tolist()) for stream in streams}) == 2  # random numbers of its own for each
    before = seen[0][-3]["steps"]
    words = [word for word in STOPPED if not word.startswith("results.dir")]
    same_steps(before + alone(*words, f"results.dir={left}"), alone(*STOPPED))
    same_results(only_run(left), only_run("stopped"))


# -- wrong input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("launcher", [torchrun, accelerate])
def test_wrong_input_is_told_once_and_leaves_nothing(tmp_path: Path, monkeypatch: Any, launcher: Any) -> None:
    monkeypatch.chdir(tmp_path)
    words = [word for word in words_of("task=cola", "method=lora", "optim.lr=-1") if word != "optim.lr=1e-2"]
    with started(launcher(2, "-m", "adalora_repro.cli.run", *words)) as child:
        done = finish(child)
    assert done.code != EXIT_OK
    (line,) = ours(done.err)
    assert line.startswith("adalora-run: error: optim.lr must be positive")
    assert done.out == ""
    assert not Path("results").exists()


if __name__ == "__main__":
    process(sys.argv[1])
