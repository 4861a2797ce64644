"""What docs/faults.md lists: killed, full, damaged, removed, shared, with a wrong clock, and nothing is lost."""

import multiprocessing
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest
from conftest import (
    ROOT,
    TINY,
    Cli,
    Outcome,
    Run,
    Whole,
    after_step,
    files_below,
    find_runs,
    ok,
    only_run,
    require_same,
)
from fake_records import make, save
from spoilt import SignalInStep, SignalInWrite, in_child, unspoilt

from adalora_repro.cli import report
from adalora_repro.errors import EXIT_BAD_INPUT, EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, EXIT_TERMINATED
from adalora_repro.records import lock, run_record

COMMAND = ("task=cola", "method=adalora", "optim.lr=1e-2", "train.save_steps=2", "train.eval_steps=3")
#: the lease of a process on another host, as filelock writes it
ELSEWHERE = "filelock/2\npid=1\nhost=elsewhere\nmode=lease\ntoken=theirs\nduration={}\n"
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
    return Outcome(
        child.exitcode, Path("out.txt").read_text(encoding="utf-8"), Path("err.txt").read_text(encoding="utf-8")
    )


# -- killed --------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("server")
@pytest.mark.parametrize(
    ("spoil", "step"),
    [
        (SignalInStep(4), 2),
        (SignalInWrite("checkpoint.new.pt", 2), 2),
        (SignalInWrite("metrics.json", 4), 4),
    ],
    ids=["step", "checkpoint", "last record"],
)
def test_sigkill_while_something_is_written(
    tiny: Cli, undisturbed: Whole, tmp_path: Path, spoil: Callable[[], None], step: int
) -> None:
    words = (*TINY, *COMMAND)
    assert in_process(words, spoil, tmp_path).code == -signal.SIGKILL
    (folder,) = {path.parent for path in Path("results").rglob(lock.NAME)}
    assert Run(folder).record.status == "running"
    assert not lock.held(folder)
    again = ok(tiny(*COMMAND))
    assert f"resuming {folder} at step {step} of 6\n" in again.err
    assert not list(folder.glob(".*"))  # a checkpoint is large, also half of it
    require_same(only_run(), undisturbed(*COMMAND))


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


def test_a_disk_that_is_really_full(
    tiny: Cli, undisturbed: Whole, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("task=cola", "method=adalora", "train.max_steps=12", "train.save_steps=5", "train.log_steps=1")
    with monkeypatch.context() as patch:
        after_step(patch, 6, lambda _: fill(small_disk))
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
    again = ok(tiny(*command))
    assert f"resuming {folder} at step 5 of 12\n" in again.err
    require_same(only_run(), undisturbed(*command))


# -- removed, taken ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "log.jsonl"], ids=["folder", "log"])
def test_what_is_removed_ends_the_run(tiny: Cli, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """With one line, and nothing is made again: who removed it meant it. Its lock alone: tests/unit/test_lock.py."""
    removed: list[Path] = []

    def remove(run: Any) -> None:
        removed.append(run.plan.folder / name)
        if name:
            removed[0].unlink()
        else:
            shutil.rmtree(removed[0])

    after_step(monkeypatch, 3, remove)
    done = tiny(*COMMAND)
    assert (done.code, done.out) == (EXIT_FAILED, "")
    assert done.err.splitlines()[-1] == (
        f"adalora-run: failed: {removed[0]} was removed while the run was training; this process stops and writes "
        "nothing more"
    )
    assert "Traceback" not in done.err
    assert not removed[0].exists()


def test_a_run_that_another_process_took_over_is_left_to_it(tiny: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, bytes] = {}

    def take(run: Any) -> None:
        (run.plan.folder / lock.NAME).unlink()
        (run.plan.folder / lock.NAME).write_text(ELSEWHERE.format(lock.LEASE_S), encoding="utf-8")
        seen.update(files_below(run.plan.folder))

    after_step(monkeypatch, 3, take)
    done = tiny(*COMMAND)
    assert (done.code, done.out) == (EXIT_FAILED, "")
    folder = only_run().folder
    assert done.err.splitlines()[-1].startswith(f"adalora-run: failed: another process took over {folder}; ")
    assert "Traceback" not in done.err
    assert files_below(folder) == seen


# -- shared --------------------------------------------------------------------------------------------------------


def test_records_that_are_written_at_once_are_read_whole(tmp_path: Path) -> None:
    """Eight threads write 80 runs, each twice, while another reads them all."""
    looks = []

    def write(writer: int) -> None:
        for seed in range(writer, 80, 8):
            save(tmp_path, make(status="running", final=None, seed=seed))
            save(tmp_path, make(seed=seed))

    with ThreadPoolExecutor(8) as pool:
        writers = [pool.submit(write, writer) for writer in range(8)]
        while not all(one.done() for one in writers):
            looks.append(run_record.read_all(tmp_path))
    looks.append(run_record.read_all(tmp_path))
    assert not any(refused for _, refused in looks)
    finished = [[record.key["seed"] for _, record in found if record.status == "ok"] for found, _ in looks]
    assert list(map(len, finished)) == sorted(map(len, finished))  # what was seen finished is seen again
    assert sorted(finished[-1]) == list(range(80))
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {run_record.RECORD_NAME}


# -- the clock -----------------------------------------------------------------------------------------------------


def test_a_clock_that_jumps_changes_no_figure_and_no_duration(
    tiny: Cli, undisturbed: Whole, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now, told = [time.time()], []

    def jumping() -> float:
        now[0] -= 86_400.0
        return now[0]

    def stopped(run: Any) -> None:
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
    require_same(only_run(), undisturbed(*COMMAND))


# -- a sweep that is interrupted again and again -------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.usefixtures("server")
def test_a_sweep_interrupted_three_times_is_the_sweep_of_one_go(undisturbed: Whole, tmp_path: Path) -> None:
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
    runs = find_runs()
    assert [run.record.key["seed"] for run in runs] == [0, 1, 2, 3]
    for run in runs:
        require_same(run, undisturbed(*COMMAND, f"seed={run.record.key['seed']}"))
    assert not list(Path("results").rglob("*.old-*"))
    assert not list(Path("results").rglob(lock.NAME))
