"""What docs/faults.md lists: killed, full, damaged, removed, shared, with a wrong clock, and nothing is lost."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, TINY, Outcome, Run, find_runs, only_run
from spoilt import SignalInStep, SignalInWrite, in_child, unspoilt

from adalora_repro.cli import report
from adalora_repro.errors import EXIT_BAD_INPUT, EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, EXIT_TERMINATED
from adalora_repro.records import lock, run_record
from adalora_repro.tasks import glue
from adalora_repro.training import checkpoint
from adalora_repro.training import loop as training_loop

Cli = Callable[..., Outcome]
COMMAND = ("task=cola", "method=adalora", "optim.lr=1e-2", "train.save_steps=2", "train.eval_steps=3")
ELSEWHERE = {"host": "elsewhere", "boot": "another", "pid": 1, "started": 1, "nonce": "theirs", "beat": 7}
PATIENCE_S = 180.0

# -- processes that can be killed: forked from a server that has imported everything, once -------------------------

CONTEXT = multiprocessing.get_context("forkserver")


@pytest.fixture(scope="module")
def server() -> None:
    CONTEXT.set_forkserver_preload(
        ["adalora_repro.cli.run", "adalora_repro.training.runner", "adalora_repro.tasks.glue"]
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("HF_HUB_OFFLINE", "1")
        forkserver.ensure_running()


def in_process(words: tuple[str, ...], spoil: Callable[[], None], tmp_path: Path) -> Outcome:
    """adalora-run in a process of its own, spoilt before it starts; a signal that ends it is a negative code."""
    child = CONTEXT.Process(target=in_child, args=(Path.cwd(), (*words, f"data.cache_dir={tmp_path / 'cache'}"), spoil))
    child.start()
    child.join(PATIENCE_S)
    child.kill()
    child.join()
    assert child.exitcode is not None
    return Outcome(
        child.exitcode, Path("out.txt").read_text(encoding="utf-8"), Path("err.txt").read_text(encoding="utf-8")
    )


# -- comparing -----------------------------------------------------------------------------------------------------


def files(found: Run) -> dict[str, bytes]:
    return {str(path.relative_to(found.folder)): path.read_bytes() for path in found.folder.glob("*/*")}


def same_as_undisturbed(tiny: Cli, *words: str) -> None:
    """Record, curve and predictions; nothing else is left behind."""
    assert tiny(*words, "results.dir=undisturbed").code == EXIT_OK
    found, expected = only_run(), only_run("undisturbed")
    assert found.record.measured() == expected.record.measured()
    assert found.log == expected.log
    assert files(found) == files(expected)
    assert not list(found.folder.glob("*.pt"))
    assert not (found.folder / lock.NAME).exists()


# -- killed --------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize(
    ("spoil", "step"),
    [
        (SignalInStep(4), 2),
        (SignalInWrite("checkpoint.new.pt", 2), 2),
        (SignalInWrite("checkpoint.new.pt", 2, "rename"), 4),
        (SignalInWrite("metrics.json", 3), 4),
        (SignalInWrite("metrics.json", 4), 4),
    ],
    ids=["step", "checkpoint", "checkpoint in place", "record", "last record"],
)
def test_sigkill_while_something_is_written(tiny: Cli, tmp_path: Path, spoil: Callable[[], None], step: int) -> None:
    words = (*TINY, *COMMAND)
    assert in_process(words, spoil, tmp_path).code == -signal.SIGKILL
    (folder,) = {path.parent for path in Path("results").rglob(lock.NAME)}
    assert Run(folder).record.status == "running"
    assert not lock.held(folder)
    again = tiny(*COMMAND)
    assert again.code == EXIT_OK, again.err
    assert again.err.startswith(f"resuming {folder} at step {step} of 6\n")
    same_as_undisturbed(tiny, *COMMAND)


# -- a full disk ---------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(cli: Cli) -> Iterator[Path]:
    """``results/`` on a file system of four megabytes."""
    folder = Path("results")
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, encoding="utf-8")
    except OSError as error:
        pytest.skip(f"no mount: {error}")
    if done.returncode:
        pytest.skip(f"no tmpfs can be mounted: {done.stderr.strip()}")
    try:
        yield folder.absolute()
    finally:
        subprocess.run(["umount", "--lazy", str(folder.absolute())], check=True)


def fill(disk: Path) -> None:
    with (disk / "ballast").open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 12):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue


@pytest.mark.parametrize("what", ["log.jsonl", "checkpoint.new.pt", "metrics.json", "predictions.validation.jsonl.gz"])
def test_a_disk_that_is_really_full(tiny: Cli, small_disk: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    command = ("task=cola", "method=adalora", "train.max_steps=12", "train.save_steps=5", "train.log_steps=1")
    append, write_atomic = training_loop.Log.append, run_record.write_atomic

    def line(self: training_loop.Log, values: dict[str, Any]) -> None:
        if what == "log.jsonl" and values["t"] == 6:
            fill(small_disk)
        append(self, values)

    def write(path: Path, content: Any) -> None:
        late = list(small_disk.rglob("checkpoint.pt"))
        if path.name == what and late:
            fill(small_disk)
        write_atomic(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(training_loop.Log, "append", line)
        patch.setattr(run_record, "write_atomic", write)
        patch.setattr(checkpoint, "write_atomic", write)
        done = tiny(*command)
    assert done.code == EXIT_BAD_INPUT
    assert (small_disk / "ballast").stat().st_size > 1 << 20
    (message,) = [line for line in done.err.splitlines() if not line.startswith("step ")]
    folder = only_run().folder
    assert message == (
        f"adalora-run: error: no space left in {folder}; what was saved there is whole: free some space and repeat "
        "the command to go on"
    )
    assert only_run().record.status == "running"
    assert not (folder / lock.NAME).exists()
    still_full = tiny(*command)
    assert still_full.code == EXIT_BAD_INPUT
    assert "No space left" in still_full.err or "no space left" in still_full.err
    (small_disk / "ballast").unlink()
    again = tiny(*command)
    assert again.code == EXIT_OK, again.err
    assert f"resuming {folder} at step {10 if what.startswith('predictions') else 5} of 12\n" in again.err
    same_as_undisturbed(tiny, *command)


# -- damaged -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", [0.5, 0.98], ids=["middle", "end"])
def test_a_checkpoint_with_flipped_bits_is_not_believed(
    tiny: Cli, monkeypatch: pytest.MonkeyPatch, where: float
) -> None:
    stop_after(monkeypatch, tiny, 5)
    newest = only_run().folder / "checkpoint.pt"
    content = bytearray(newest.read_bytes())
    place = int(len(content) * where)
    content[place : place + 512] = bytes(byte ^ 1 for byte in content[place : place + 512])
    newest.write_bytes(content)
    done = tiny(*COMMAND)
    assert done.code == EXIT_OK, done.err
    first, second = done.err.splitlines()[:2]
    assert re.fullmatch(rf"adalora-run: {newest} cannot be read \(\w+\), trying the one before", first)
    assert second == f"resuming {newest.parent} at step 4 of 6"
    same_as_undisturbed(tiny, *COMMAND)


def stop_after(monkeypatch: pytest.MonkeyPatch, tiny: Cli, step: int) -> None:
    with monkeypatch.context() as patch:
        after_step(patch, step, lambda _: os.kill(os.getpid(), signal.SIGTERM))
        assert tiny(*COMMAND).code == EXIT_TERMINATED


def after_step(patch: pytest.MonkeyPatch, step: int, act: Callable[[Path], None]) -> None:
    """``act`` on the run's folder after this step."""
    whole = training_loop.step

    def acting(loop: training_loop.RunState, batches: Any) -> Any:
        norm = whole(loop, batches)
        if loop.t == step:
            act(loop.plan.folder)
        return norm

    patch.setattr(training_loop, "step", acting)


# -- removed, taken ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["results", "run", "lock"])
def test_a_folder_that_is_removed_meanwhile_is_made_again(
    tiny: Cli, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    def remove(folder: Path) -> None:
        if what == "lock":
            (folder / lock.NAME).unlink()
        else:
            shutil.rmtree("results" if what == "results" else folder)

    with monkeypatch.context() as patch:
        after_step(patch, 3, remove)
        done = tiny(*COMMAND)
    assert done.code == EXIT_OK, done.err
    notes = [line for line in done.err.splitlines() if "note:" in line and "degenerate" not in line]
    folder = only_run().folder
    again = f"adalora-run: note: {folder} was removed: made again, with its log and settings"
    assert notes == ([] if what == "lock" else [again])
    same_as_undisturbed(tiny, *COMMAND)
    assert sorted(path.name for path in folder.iterdir()) == [
        "best",
        "config.yaml",
        "final",
        "log.jsonl",
        "metrics.json",
    ]


def test_predictions_that_went_with_the_folder_are_named(tiny: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ("task=sst2", "method=lora", "train.eval_steps=2", "optim.lr=1e-5")
    scores = iter([0.9, 0.8, 0.7])
    monkeypatch.setattr(
        glue.Task, "metrics", lambda *_: training_loop.Evaluation({"accuracy": next(scores)}, {"p.json": 1})
    )
    with monkeypatch.context() as patch:
        after_step(patch, 3, shutil.rmtree)
        done = tiny(*command)
    assert done.code == EXIT_OK, done.err
    found = only_run()
    assert f"adalora-run: note: {found.folder}: the predictions of step 2 in best/ are lost\n" in done.err
    assert found.record.best == {"metrics": {"accuracy": 0.9}, "step": 2}
    assert found.log[-1] == {"t": 6, "evaluation": {"accuracy": 0.7}}
    assert not (found.folder / "best").exists()


@pytest.mark.parametrize("how", ["lock", "folder", "finished"])
def test_a_run_that_another_process_took_over_is_left_to_it(
    tiny: Cli, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    assert tiny(*COMMAND, "results.dir=theirs").code == EXIT_OK
    theirs = only_run("theirs").folder / run_record.RECORD_NAME
    seen: dict[str, bytes] = {}

    def everything(folder: Path) -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    def take(folder: Path) -> None:
        (folder / lock.NAME).unlink()
        if how == "folder":
            shutil.rmtree(folder)
            folder.mkdir()
        if how == "finished":
            shutil.copy(theirs, folder)
        else:
            (folder / lock.NAME).write_text(json.dumps(ELSEWHERE), encoding="utf-8")
        seen.update(everything(folder))

    with monkeypatch.context() as patch:
        after_step(patch, 3, take)
        done = tiny(*COMMAND)
    assert done.code == EXIT_FAILED
    folder = next(Path("results").rglob("*-lr0.01-*"))
    finished = " and finished" if how == "finished" else ""
    assert done.err.splitlines()[-1] == (
        f"adalora-run: failed: another process took over{finished} {folder}; this one stops and writes nothing more"
    )
    assert "Traceback" not in done.err
    assert done.out == ""
    assert everything(folder) == seen


# -- shared --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alive", [True, False])
def test_a_sweep_meets_a_lock_of_another_machine(tiny: Cli, monkeypatch: pytest.MonkeyPatch, alive: bool) -> None:
    """A dead one is an interrupted run, that of a job that was moved to another machine for example."""
    words = ("task=rte", "method=bitfit")
    folder = Path(re.search(r"^folder: (.*)$", tiny(*words, "dry_run=true").out, re.MULTILINE)[1])  # type: ignore[index]
    folder.mkdir(parents=True)
    (folder / lock.NAME).write_text(json.dumps(ELSEWHERE), encoding="utf-8")
    monkeypatch.setattr(lock, "LOOK_S", 0.001)
    monkeypatch.setattr(lock, "LEASE_S", 0.01)
    look, beats = lock.look, iter(range(1000))

    def beating(path: Path) -> Any:
        if alive:
            path.write_text(json.dumps(ELSEWHERE | {"beat": next(beats)}), encoding="utf-8")
        return look(path)

    with monkeypatch.context() as patch:
        patch.setattr(lock, "look", beating)
        done = tiny("-m", *words, "seed=0")
    assert done.code == EXIT_OK, done.err
    assert f"adalora-run: {folder} is locked by elsewhere: looking for up to" in done.err
    if alive:
        assert f"skipped: another process is training {folder}\n" in done.out
        assert (folder / lock.NAME).exists()
    else:
        assert done.out.splitlines()[-1] == "sweep: 1 done"
        assert only_run().record.status == "ok"
        assert not (folder / lock.NAME).exists()


MANY = """
import itertools, multiprocessing, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from fake_records import make, save
from adalora_repro.records.run_record import read_all
from adalora_repro.cli import report
results, processes = Path("results"), 200
context = multiprocessing.get_context("fork")
ready, done = context.Barrier(processes + 2), context.Event()

def records(writer):
    for seed in range(writer, 500, processes):
        yield make(0.25 + seed % 2 / 2, task=("cola", "rte")[seed % 2], seed=seed)

def write(writer):
    ready.wait()
    ours = list(records(writer))
    for record in ours:
        record.status, final, record.final = "running", record.final, None
        save(results, record)
        record.status, record.final = "ok", final
    for record in ours:
        save(results, record)

def read(name):
    ready.wait()
    rounds, last = 0, -1
    while rounds < 2 or not done.is_set():
        found, refused = read_all(results)
        finished = sum(record.status == "ok" for _, record in found)
        assert refused == [], refused
        assert finished >= last, "a finished run was not seen again"
        last = finished
        assert report.main([name, "--data", "local", "--backbone", "minilm"]) == 0
        rounds += 1

writers = [context.Process(target=write, args=(writer,)) for writer in range(processes)]
readers = [context.Process(target=read, args=(name,)) for name in ("table1", "status")]
for process in writers + readers:
    process.start()
for process in writers:
    process.join()
done.set()
for process in readers:
    process.join()
sys.exit(any(process.exitcode for process in writers + readers))
"""


def test_five_hundred_records_in_one_moment(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two hundred processes write them, two read all the while: tables and status."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", MANY, str(ROOT / "tests")]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    found, refused = run_record.read_all(tmp_path / "results")
    assert refused == []
    assert sorted(record.key["seed"] for _, record in found) == list(range(500))
    assert {record.status for _, record in found} == {"ok"}
    assert not [path for path in (tmp_path / "results").rglob("*") if path.is_file() and path.name != "metrics.json"]
    options = ["--results", str(tmp_path / "results"), "--backbone", "minilm", "--data", "local"]
    assert report.main(["table1", *options, "--format", "csv"]) == EXIT_OK
    counted = capsys.readouterr().out
    for seed in (0, 1, 250, 499):
        assert counted.count(f"seed{seed}-v1h{seed}/") == 1
    assert report.main(["status", *options]) == EXIT_OK
    assert "500 runs: 500 finished" in capsys.readouterr().out


# -- the clock -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("jump", [-86_400.0, 86_400.0], ids=["backwards", "forwards"])
def test_a_clock_that_jumps_changes_no_figure_and_no_duration(
    tiny: Cli, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], jump: float
) -> None:
    now, told = [time.time()], []

    def jumping() -> float:
        now[0] += jump
        return now[0]

    def stopped(folder: Path) -> None:
        for name in ("table1", "status"):
            assert report.main([name, "--backbone", "tiny-bert", "--data", "sample"]) == EXIT_OK
            told.append(capsys.readouterr().out)

    with monkeypatch.context() as patch:
        patch.setattr(time, "time", jumping)
        after_step(patch, 3, stopped)
        done = tiny(*COMMAND)
    assert done.code == EXIT_OK, done.err
    assert "cola adalora 0.3M lr 1e-2 seed 0: step 2/6" in told[1]
    assert "1 running" in told[1]  # its process lives, whatever the time
    assert not re.search(r"-\d+ (s|min|h)\b", told[1])
    record = only_run().record
    assert all(0 <= seconds < 86_400 for name, seconds in record.time.items() if name != "tokens_per_s")
    same_as_undisturbed(tiny, *COMMAND)


# -- a sweep that is interrupted again and again -------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.usefixtures("server")
def test_a_sweep_interrupted_three_times_is_the_sweep_of_one_go(tiny: Cli, tmp_path: Path) -> None:
    words = ("-m", *TINY, *COMMAND, "seed=0,1,2,3")
    faults = [
        (SignalInStep(9, signal.SIGINT), EXIT_INTERRUPTED, "sweep: 1 done, 1 interrupted, 2 not started"),
        (SignalInWrite("metrics.json", 7), -signal.SIGKILL, ""),
        (SignalInStep(1, signal.SIGTERM), EXIT_TERMINATED, "sweep: 2 already done, 1 interrupted, 1 not started"),
        (unspoilt, EXIT_OK, "sweep: 2 done, 2 already done"),
        (unspoilt, EXIT_OK, "sweep: 4 already done"),
    ]
    for spoil, code, summary in faults:
        done = in_process(words, spoil, tmp_path)
        assert done.code == code, done.err
        if summary:
            assert done.out.splitlines()[-1] == summary
    assert tiny("-m", *COMMAND, "seed=0,1,2,3", "results.dir=undisturbed").code == EXIT_OK
    found, expected = find_runs(), find_runs("undisturbed")
    assert [run.record.key["seed"] for run in found] == [0, 1, 2, 3]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.record.measured() == theirs.record.measured()
        assert ours.log == theirs.log
        assert files(ours) == files(theirs)
    assert not list(Path("results").rglob("*.old-*"))
    assert not list(Path("results").rglob(lock.NAME))
