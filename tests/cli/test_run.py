"""adalora-run from the outside: what one command leaves on disk, and what a second one makes of it."""

import errno
import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import (
    TINY,
    Cli,
    Whole,
    after_step,
    files_below,
    ok,
    only_run,
    predictions,
    require_same,
    signal_after_step,
)
from programs import python

from adalora_repro.errors import EXIT_BAD_INPUT, EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, EXIT_TERMINATED
from adalora_repro.models import inject
from adalora_repro.records import run_record
from adalora_repro.tasks import glue
from adalora_repro.training import checkpoint, evaluate, kept

# -- one run --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_one_command_makes_one_record(tiny: Cli, precision: str) -> None:
    """With what tests/golden leaves out of the records it keeps."""
    done = ok(tiny("task=cola", "method=adalora", f"train.precision={precision}"))
    run = only_run()
    record = run.record
    score = record.final["metrics"]["matthews_correlation"]
    assert done.out == f"done: matthews_correlation {score:.4f}  ({run.folder / 'metrics.json'})\n"
    seconds = record.time["train_s"]
    assert 0 < seconds == pytest.approx(6 * record.time["s_per_step"])
    assert record.time["s_per_epoch"] == pytest.approx(seconds * 8 / 6)  # 64 rows in steps of 8
    assert 48 < seconds * record.time["tokens_per_s"] <= 48 * 32
    assert record.memory["peak"] > 0
    assert [path.name for path in Path().iterdir()] == ["results"]


def test_a_run_speaks_in_plain_lines(tiny: Cli) -> None:
    done = tiny("task=sst2", "method=lora")
    heading, what, *stages = done.beginning.splitlines()
    assert heading == "sst2 lora 0.3M on tiny-bert, seed 0, data=sample"
    assert what.startswith("cpu (")
    assert what.endswith(f", T = 6 steps, {only_run().record.params['total']:,} trainable parameters")
    assert stages == ["tokenizing", "loading weights"]
    steps = [line for line in done.err.splitlines() if "note: degenerate: " not in line]
    positions = [line.partition("  ")[0] for line in steps]
    assert positions == ["step 2/6", "step 4/6", "step 6/6", "step 6/6"]  # the last one is the evaluation's
    assert not {"\r", "\x1b"} & set(done.err)


# -- the same command again -----------------------------------------------------------------------------------------


def test_a_finished_run_is_not_run_again(tiny: Cli) -> None:
    """Recognizing it takes no torch, so going through a finished sweep is quick; a plan takes no compiler."""
    assert tiny("task=sst2", "method=lora").code == EXIT_OK
    path = only_run().folder / "metrics.json"
    before = path.stat().st_mtime_ns, path.read_bytes()
    again = tiny("task=sst2", "method=lora")
    assert (again.code, again.err) == (EXIT_OK, "")
    (line,) = again.out.splitlines()
    assert line.startswith(f"already done: {path.parent} (accuracy ")
    assert line.endswith("force=true runs it again")

    code = (
        "import sys\n"
        "from hydra.core.global_hydra import GlobalHydra\n"
        "from adalora_repro.cli.run import main\n"
        f"sys.argv = ['adalora-run', *{[*TINY, 'task=sst2', 'method=lora']!r}]\n"
        "code = main()\n"
        "print(sorted({'torch', 'transformers', 'datasets'} & set(sys.modules)), code)\n"
        "GlobalHydra.instance().clear()\n"
        "sys.argv.append('dry_run=true')\n"
        "code = main()\n"
        "print(sorted({'torch._dynamo', 'datasets', 'accelerate'} & set(sys.modules)), code)\n"
    )
    printed = python("-c", code).stdout.splitlines()
    assert (printed[:2], printed[-1]) == ([line, "[] 0"], "[] 0")
    assert (path.stat().st_mtime_ns, path.read_bytes()) == before


def test_force_sets_the_old_run_aside_and_measures_the_same(tiny: Cli) -> None:
    """As does a run whose record was removed; it has the first number, the one with a record the second."""
    command = ("task=sst2", "method=adalora", "optim.lr=1e-2")
    assert tiny(*command).code == EXIT_OK
    folder = only_run().folder
    first, log, files = only_run().record, only_run().log, predictions(only_run())
    (folder / "metrics.json").unlink()
    for number, force in ((1, ()), (2, ("force=true",))):
        (folder / "log.jsonl").write_text(f"log {number}", encoding="utf-8")  # all runs measure the same
        assert tiny(*command, *force).code == EXIT_OK
        assert (folder / f"log.old-{number}.jsonl").read_text(encoding="utf-8") == f"log {number}"
        aside = [(name, path) for name in ("best", "final") for path in folder.glob(f"{name}.old-{number}/*")]
        assert {f"{name}/{path.name}": path.read_bytes() for name, path in aside} == files
    assert run_record.read(folder / "metrics.old-2.json").measured() == first.measured()
    assert only_run().record.measured() == first.measured()
    assert only_run().log == log
    names = ["best", "config.yaml", "final", "log.jsonl", "metrics.json", "metrics.old-2.json", "model"]
    kinds = ("best.old-{}", "final.old-{}", "model.old-{}", "log.old-{}.jsonl")
    names += [kind.format(n) for n in (1, 2) for kind in kinds]
    assert sorted(path.name for path in folder.iterdir()) == sorted(names)


# -- several runs ---------------------------------------------------------------------------------------------------


def test_an_interrupted_job_ends_the_sweep(tiny: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    signal_after_step(monkeypatch, 3)
    done = tiny("-m", "task=sst2", "method=lora", "seed=0,1")
    assert done.code == EXIT_TERMINATED
    assert (only_run().record.key["seed"], only_run().record.status) == (0, "cancelled")
    assert done.out.splitlines()[-1] == "sweep: 1 interrupted, 1 not started"


# -- what goes wrong on the way -------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_ends_the_run_with_its_step(
    tiny: Cli, undisturbed: Whole, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss, calls = glue.Task.loss, []

    def spoilt(self: Any, model: Any, batch: Any) -> Any:
        value, n = loss(self, model, batch)
        calls.append(n)
        return (value * float("nan") if len(calls) == 4 else value), n

    monkeypatch.setattr(glue.Task, "loss", spoilt)
    command = ("task=sst2", "method=adalora", "optim.lr=1e-2")
    done = tiny(*command, "train.save_steps=1", "train.log_steps=100")
    assert done.code == EXIT_FAILED
    run = only_run()
    record = run.record
    assert (record.status, record.final) == ("failed", None)
    assert record.error == "NonFiniteLossError: the loss is nan at step 3; a lower optim.lr may help"
    assert done.err.splitlines()[-1] == f"adalora-run: failed: {record.error}  ({run.folder})"
    assert "NonFiniteLossError" in (run.folder / "error.txt").read_text(encoding="utf-8")
    state, _ = checkpoint.load(run.folder, record.key["hash"])
    assert state["t"] == 3  # the last step before
    assert all(value.isfinite().all() for value in state["model"].values())

    monkeypatch.setattr(glue.Task, "loss", loss)
    assert tiny(*command).code == EXIT_OK
    assert only_run().record.measured() == undisturbed(*command).record.measured()
    assert not (run.folder / "error.txt").exists()


XSUM = ["task=xsum", "budget=0.13%", "backbone=tiny-bart", "task.max_length=128", "task.max_target_length=12"]


@pytest.mark.parametrize(
    ("words", "at", "long"),
    [
        pytest.param(["task=sst2"], 4, 200, id="saved"),
        pytest.param(["task=sst2"], 6, 200, id="evaluated", marks=pytest.mark.slow),
        pytest.param(["task=sst2"], 6, 1, id="saved before it is evaluated"),
        pytest.param([*XSUM, "task.num_beams=2"], 6, 200, id="summaries", marks=pytest.mark.slow),
    ],
)
def test_a_weight_that_is_not_finite_is_no_result(
    tiny: Cli, undisturbed: Whole, monkeypatch: pytest.MonkeyPatch, words: list[str], at: int, long: int
) -> None:
    """The losses are finite: it is the last update that spoils it. A generated summary would look like any other."""
    names = []

    def spoil(run: Any) -> None:
        name, parameter = list(inject.trained(run.model).items())[3]
        parameter.data.view(-1)[-1] = float("nan")
        names.append(name)

    sizes = ("data.sample_rows=16", "data.sample_validation_rows=8", "train.batch_size=4")
    command = (*words, *sizes, "method=lora", "train.save_steps=2", "train.eval_steps=6")
    monkeypatch.setattr(evaluate, "LONG_EVALUATION", long)
    with monkeypatch.context() as patch:
        after_step(patch, at, spoil)
        done = tiny(*command)
    assert done.code == EXIT_FAILED
    run = only_run()
    record = run.record
    why = f"{names[0]} is not finite after step {at - 1}; a lower optim.lr may help"
    assert (record.status, record.error) == ("failed", f"NonFiniteLossError: {why}")
    assert done.err.splitlines()[-1] == f"adalora-run: failed: {record.error}  ({run.folder})"
    assert (record.final, record.best, done.out) == (None, None, "")
    assert not (run.folder / "final").exists()
    assert not any("evaluation" in line for line in run.log)
    state, _ = checkpoint.load(run.folder, record.key["hash"])
    assert state["t"] == at - 2
    assert all(value.isfinite().all() for value in state["model"].values())
    assert tiny(*command).code == EXIT_OK  # from the checkpoint before
    require_same(only_run(), undisturbed(*command))


@pytest.mark.parametrize(
    "name", ["checkpoint.new.pt", "config.yaml", pytest.param("metrics.json", marks=pytest.mark.slow)]
)
def test_a_full_disk_costs_nothing_that_was_saved(
    tiny: Cli, undisturbed: Whole, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    command = ("task=sst2", "method=adalora", "optim.lr=1e-2")
    write_atomic, replaced = run_record.write_atomic, []

    def full(path: Path, content: bytes) -> None:
        replaced.append(path.name)
        if path.name == name and replaced.count(name) == (1 if name == "config.yaml" else 2):
            with monkeypatch.context() as patch:
                patch.setattr(os, "fsync", _no_space)
                write_atomic(path, content)
        write_atomic(path, content)

    with monkeypatch.context() as patch:
        for module in (run_record, checkpoint):
            patch.setattr(module, "write_atomic", full)
        done = tiny(*command, "train.save_steps=2")
    assert done.code == EXIT_BAD_INPUT
    (line,) = [line for line in done.err.splitlines() if not line.startswith("step ")]
    assert line.startswith("adalora-run: error: no space left in results/")
    if name != "config.yaml":
        run = only_run()
        assert run.record.status == "running"
        state, problems = checkpoint.load(run.folder, run.record.key["hash"])
        assert (state["t"], problems) == (2, [])
        assert not [path.name for path in run.folder.iterdir() if path.name.startswith(".")]
    again = ok(tiny(*command))
    assert ("resuming" in again.err) == (name != "config.yaml")
    require_same(only_run(), undisturbed(*command))


def test_a_disk_that_is_full_when_the_model_is_kept(tiny: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise Exception("No space left on device (os error 28)")  # as tokenizers does

    monkeypatch.setattr(kept, "keep", full)
    done = tiny("task=sst2", "method=lora")
    assert (done.code, only_run().record.status) == (EXIT_BAD_INPUT, "running")
    assert "adalora-run: error: no space left in results/" in done.err


def test_a_disk_that_fails_ends_the_run_in_one_line(tiny: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(path: Path, content: bytes) -> None:
        raise OSError(errno.EIO, "Input/output error", path.name)

    monkeypatch.setattr(run_record, "write_atomic", lost)
    done = tiny("task=sst2", "method=lora")
    assert done.code == EXIT_FAILED
    assert done.err.splitlines()[-1].startswith("adalora-run: failed: [Errno 5] Input/output error: 'config.yaml'; ")


def _no_space(handle: int) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


# -- interrupted and resumed, in this process; test_faults.py kills real ones ---------------------------------------


STOPPED = ("task=cola", "method=adalora", "optim.lr=1e-2", "train.eval_steps=2", "train.grad_accumulation=2")


def test_a_signal_ends_cleanly_and_the_same_command_resumes(
    tiny: Cli, undisturbed: Whole, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C here, SIGTERM in all other tests."""
    with monkeypatch.context() as patch:
        signal_after_step(patch, 3, signal.SIGINT)
        assert tiny(*STOPPED).code == EXIT_INTERRUPTED
    record = only_run().record
    assert (record.status, record.progress["step"]) == ("cancelled", 3)
    assert "the same command resumes it" in record.error
    resumed = ok(tiny(*STOPPED))
    assert resumed.err.startswith(f"resuming {only_run().folder} at step 3 of 6\n")
    require_same(only_run(), undisturbed(*STOPPED))


@pytest.fixture(scope="module")
def stopped_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stopped") / "results"


@pytest.fixture
def stopped(tiny: Cli, monkeypatch: pytest.MonkeyPatch, stopped_once: Path) -> Path:
    """The folder of a run that was stopped after step 5, with checkpoints of steps 4 and 5."""
    if not stopped_once.exists():
        with monkeypatch.context() as patch:
            signal_after_step(patch, 5)
            assert tiny(*STOPPED, "train.save_steps=2", f"results.dir={stopped_once}").code == EXIT_TERMINATED
    shutil.copytree(stopped_once, "results")
    return only_run().folder


def test_a_damaged_checkpoint_falls_back_to_the_one_before(tiny: Cli, undisturbed: Whole, stopped: Path) -> None:
    newest = stopped / "checkpoint.pt"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    done = ok(tiny(*STOPPED))
    first, second = done.err.splitlines()[:2]
    assert re.fullmatch(rf"adalora-run: {newest} cannot be read \(\w+\), trying the one before", first)
    assert second == f"resuming {stopped} at step 4 of 6"
    require_same(only_run(), undisturbed(*STOPPED))


def test_without_a_readable_checkpoint_it_starts_over(tiny: Cli, undisturbed: Whole, stopped: Path) -> None:
    names = checkpoint.NAMES
    for name in names:
        (stopped / name).write_bytes(name.encode())
    done = ok(tiny(*STOPPED))
    aside = [name.replace(".pt", ".old-1.pt") for name in names]
    *unreadable, over = done.err.splitlines()[: len(names) + 1]
    assert unreadable == [f"adalora-run: {stopped / name} cannot be read (BadZipFile)" for name in names]
    assert over.startswith(f"starting {stopped} over at step 0 of 6; ")
    assert over.endswith(", ".join(aside))
    require_same(only_run(), undisturbed(*STOPPED))
    assert sorted(path.name for path in stopped.glob("*.pt")) == sorted(aside)
    assert [(stopped / name).read_bytes() for name in aside] == [name.encode() for name in names]


def test_a_checkpoint_of_another_configuration_is_refused(tiny: Cli, stopped: Path) -> None:
    newest = stopped / "checkpoint.pt"
    state = torch.load(newest, weights_only=True)
    torch.save(state | {"hash": "0123456789"}, newest)
    before = files_below(stopped)
    done = tiny(*STOPPED)
    assert done.code == EXIT_BAD_INPUT
    assert done.err.startswith(
        f"adalora-run: error: {newest} is from another configuration (0123456789, this one is {state['hash']}); "
    )
    assert files_below(stopped) == before


def test_force_starts_over_and_keeps_what_was_there(tiny: Cli, undisturbed: Whole, stopped: Path) -> None:
    (stopped / "error.txt").write_text("a traceback", encoding="utf-8")  # of a failure before
    names = (*checkpoint.NAMES, "error.txt")
    before = [(stopped / name).read_bytes() for name in names]
    done = ok(tiny(*STOPPED, "force=true"))
    line = done.err.splitlines()[0]
    assert line.startswith(f"starting {stopped} over at step 0 of 6; ")
    assert line.endswith("checkpoint.old-1.pt, checkpoint.previous.old-1.pt")
    aside = [Path(name).with_suffix(f".old-1{Path(name).suffix}") for name in names]
    assert [(stopped / name).read_bytes() for name in aside] == before
    assert not [name for name in names if (stopped / name).exists()]
    assert only_run().record.measured() == undisturbed(*STOPPED).record.measured()


def test_the_record_of_another_run_in_the_folder_is_not_taken_for_this_ones(tiny: Cli) -> None:
    words = ("task=sst2", "method=lora")
    assert tiny(*words).code == EXIT_OK
    first = only_run().folder / "metrics.json"
    (line,) = (line for line in tiny(*words, "seed=1", "dry_run=true").out.splitlines() if line.startswith("folder: "))
    second = Path(line.removeprefix("folder: ")) / "metrics.json"
    second.parent.mkdir()
    second.write_bytes(first.read_bytes())
    refused = tiny(*words, "seed=1")
    assert refused.code == EXIT_BAD_INPUT
    assert "holds the record of another run" in refused.err
    assert second.read_bytes() == first.read_bytes()


def test_a_run_that_another_process_finished_meanwhile_is_left_alone(
    tiny: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    from adalora_repro.config import resolve as planning

    assert tiny("task=sst2", "method=lora").code == EXIT_OK
    (path,) = Path("results").glob("runs/**/metrics.json")
    before = path.read_bytes()
    monkeypatch.setattr(planning, "finished", lambda plan: None)  # what run.py saw, some seconds ago
    done = ok(tiny("task=sst2", "method=lora"))
    assert "already done" in done.out
    assert path.read_bytes() == before
    assert not list(path.parent.glob("*old*"))
