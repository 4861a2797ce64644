"""adalora-run from the outside: what one command leaves on disk, and what a second one makes of it."""

from __future__ import annotations

import errno
import gzip
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import scipy.stats
import sklearn.metrics
import torch
from conftest import ROOT, TINY, Outcome, Run, find_runs, only_run
from omegaconf import OmegaConf
from task_configs import write_jsonl

from adalora_repro.errors import EXIT_BAD_INPUT, EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, EXIT_TERMINATED
from adalora_repro.methods import lora
from adalora_repro.records import run_record
from adalora_repro.tasks import glue, toy_text
from adalora_repro.training import checkpoint, runner

Cli = Callable[..., Outcome]
METHODS = ("full", "bitfit", "houlsby", "pfeiffer", "lora", "adalora")
QUIET = [f"+backbone.architecture.{name}=0" for name in ("hidden_dropout_prob", "attention_probs_dropout_prob")]


# One run


@pytest.mark.parametrize("method", METHODS)
def test_one_command_makes_one_record(tiny: Cli, method: str) -> None:
    done = tiny("task=cola", f"method={method}", "optim.lr=1e-3", "train.eval_steps=3")
    assert done.code == EXIT_OK, done.err
    run = only_run()
    record = run.record
    assert record.status == "ok"
    assert record.error is None
    assert done.out == f"done: matthews_correlation {record.final['metrics']['matthews_correlation']:.4f}  (" + (
        f"{run.folder / 'metrics.json'})\n"
    )
    assert record.key | {"variant": "", "hash": ""} == {
        "backbone": "tiny-bert",
        "task": "cola",
        "method": method,
        "budget": method if method in ("full", "bitfit") else "0.3M",
        "protocol": "paper",
        "data": "sample",
        "lr": 1e-3,
        "seed": 0,
        "total_steps": 6,
        "max_examples": None,
        "variant": "",
        "hash": "",
    }
    assert run.folder == run_record.run_folder(Path("results"), record.key)
    assert record.final["step"] == 6
    assert record.best is not None
    assert record.best["step"] in (3, 6)
    assert record.params["total"] == record.params["method"] + record.params["head"]
    assert record.data["rows"] == {"train": 64, "validation": 32}
    assert record.data["max_length"] == 32
    assert record.time["train_s"] > 0
    assert record.memory["peak"] > 0
    assert record.progress["step"] == 6
    ranks = record.rank_pattern and sum(record.rank_pattern.values())
    assert ranks == (12 * 2 if method in ("lora", "adalora") else None)
    assert (record.budget or {}).get("b_T") == (12 * 2 if method == "adalora" else None)

    assert [line["t"] for line in run.steps] == [2, 4, 6]
    assert [line["t"] for line in run.log if "evaluation" in line] == [3, 6]
    assert run.log[-1]["evaluation"] == record.final["metrics"]
    for line in run.steps:
        assert set(line) >= {"t", "loss", "regularizer", "lr", "grad_norm"}
        assert (line["regularizer"] is not None) == ("b_t" in line) == (method == "adalora")
    assert run.steps[-1]["lr"] == 0  # linear decay ends at T

    written = OmegaConf.load(run.folder / "config.yaml")
    assert (written.optim.lr, written.seed, written.method.name) == (1e-3, 0, method)
    beside = ["best", "config.yaml", "final", "log.jsonl", "metrics.json"]
    assert sorted(path.name for path in run.folder.iterdir()) == beside
    for entry, folder in ((record.final, "final"), (record.best, "best")):
        assert sorted(kept(run.folder / folder)) == ["predictions.validation.jsonl.gz"]
        assert recomputed(run.folder / folder, "cola") == entry["metrics"]
    assert [path.name for path in Path().iterdir()] == ["results"]


def kept(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def recomputed(folder: Path, task: str) -> dict[str, float]:
    """The task's figures from the predictions that lie beside a record, in plain arithmetic where that is short."""
    found = {}
    for suffix, split in {"mnli": {"_m": "validation_matched", "_mm": "validation_mismatched"}}.get(
        task, {"": "validation"}
    ).items():
        with gzip.open(folder / f"predictions.{split}.jsonl.gz", "rt", encoding="utf-8") as file:
            rows = [json.loads(line) for line in file]
        labels, predicted = [row["label"] for row in rows], [row["prediction"] for row in rows]
        assert len(rows) == 32
        if task == "cola":
            found["matthews_correlation"] = float(sklearn.metrics.matthews_corrcoef(labels, predicted))
        elif task == "stsb":
            found["pearson"] = float(scipy.stats.pearsonr(labels, predicted)[0])
            found["spearman"] = float(scipy.stats.spearmanr(labels, predicted)[0])
            found["corr"] = (found["pearson"] + found["spearman"]) / 2
        else:
            found[f"accuracy{suffix}"] = sum(a == b for a, b in zip(labels, predicted, strict=True)) / len(rows)
        if task == "mrpc":
            hits = sum(a == b == 1 for a, b in zip(labels, predicted, strict=True))
            found["f1"] = 2 * hits / (sum(labels) + sum(predicted))
    return found


def test_what_is_shown_in_a_file_is_plain_lines(tiny: Cli) -> None:
    done = tiny("task=sst2", "method=lora")
    steps = [line for line in done.err.splitlines() if "note: degenerate: " not in line]
    positions = [line.partition("  ")[0] for line in steps]
    assert positions == ["step 2/6", "step 4/6", "step 6/6", "step 6/6"]  # the last one is the evaluation's
    assert "\r" not in done.err
    assert "\x1b" not in done.err


@pytest.mark.parametrize("task", ["mnli", "stsb", "mrpc"])
def test_other_kinds_of_task_run(tiny: Cli, task: str) -> None:
    assert tiny(f"task={task}", "method=adalora", "train.max_steps=4").code == EXIT_OK
    record = only_run().record
    metrics = {
        "mnli": {"accuracy_m", "accuracy_mm"},
        "stsb": {"pearson", "spearman", "corr"},
        "mrpc": {"accuracy", "f1"},
    }[task]
    assert set(record.final["metrics"]) == metrics
    assert record.final["metrics"] == pytest.approx(recomputed(only_run().folder / "final", task), abs=1e-6)


# The same command again


def test_a_finished_run_is_not_run_again(tiny: Cli) -> None:
    assert tiny("task=sst2", "method=lora").code == EXIT_OK
    path = only_run().folder / "metrics.json"
    before = path.stat().st_mtime_ns, path.read_bytes()
    again = tiny("task=sst2", "method=lora")
    assert again.code == EXIT_OK
    assert again.err == ""
    (line,) = again.out.splitlines()
    assert line.startswith(f"already done: {path.parent} (accuracy ")
    assert line.endswith("force=true runs it again")
    assert (path.stat().st_mtime_ns, path.read_bytes()) == before

    # recognizing it takes no torch, so going through a finished sweep is quick
    words = [*TINY, "task=sst2", "method=lora"]
    code = (
        f"import sys; sys.argv = ['adalora-run', *{words!r}]\n"
        "from adalora_repro.cli.run import main\n"
        "code = main()\n"
        "print(sorted({'torch', 'transformers', 'datasets'} & set(sys.modules)), code)"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    child = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True, encoding="utf-8"
    )
    assert child.stdout.splitlines() == [line, "[] 0"]
    assert (path.stat().st_mtime_ns, path.read_bytes()) == before


def test_a_plan_imports_no_compiler() -> None:
    """Which drawing weights would: a second."""
    code = (
        "import sys; sys.argv = ['adalora-run', 'task=mnli', 'method=adalora', 'budget=0.3M', 'dry_run=true']\n"
        "from adalora_repro.cli.run import main\n"
        "code = main()\n"
        "print(sorted({'torch._dynamo', 'datasets', 'accelerate'} & set(sys.modules)), code)"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    child = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True, encoding="utf-8"
    )
    assert child.stdout.splitlines()[-1] == "[] 0"


def test_force_keeps_the_old_record_and_measures_the_same(tiny: Cli) -> None:
    command = ("task=sst2", "method=adalora", "optim.lr=1e-2")
    tiny(*command)
    run = only_run()
    first, log = run.record, run.log
    assert tiny(*command, "force=true").code == EXIT_OK
    assert run_record.read(run.folder / "metrics.old-1.json").to_json() == first.to_json()
    assert only_run().record.measured() == first.measured()
    assert only_run().log == log
    assert tiny(*command, "force=true").code == EXIT_OK
    assert (run.folder / "metrics.old-2.json").is_file()
    assert (run.folder / "log.old-1.jsonl").is_file()
    for name in ("final", "best"):
        assert kept(run.folder / name) == kept(run.folder / f"{name}.old-1") == kept(run.folder / f"{name}.old-2")
    assert len(find_runs()) == 1


def test_what_is_set_aside_never_takes_the_place_of_what_was(tiny: Cli) -> None:
    command = ("task=sst2", "method=lora")
    assert tiny(*command).code == EXIT_OK
    folder = only_run().folder

    def mark(number: int) -> None:
        """So that the files of each run, which measure the same, can be told apart."""
        (folder / "log.jsonl").write_text(f"log {number}", encoding="utf-8")
        for name in ("final", "best"):
            (folder / name / "mark").write_text(f"{name} {number}", encoding="utf-8")

    mark(0)
    (folder / "metrics.json").unlink()  # by hand
    assert tiny(*command).code == EXIT_OK
    for number in (1, 2):
        mark(number)
        done = tiny(*command, "force=true")
        assert done.code == EXIT_OK
        assert "Traceback" not in done.err
    for number in (0, 1, 2):
        assert (folder / f"log.old-{number + 1}.jsonl").read_text(encoding="utf-8") == f"log {number}"
        for name in ("final", "best"):
            assert kept(folder / f"{name}.old-{number + 1}")["mark"] == f"{name} {number}".encode()
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        [
            *("best", "config.yaml", "final", "log.jsonl", "metrics.json"),
            *(f"{name}.old-{number}" for name in ("best", "final") for number in (1, 2, 3)),
            *(f"log.old-{number}.jsonl" for number in (1, 2, 3)),
            *(f"metrics.old-{number}.json" for number in (2, 3)),
        ]
    )
    assert len(find_runs()) == 1


def test_predictions_belong_to_the_evaluation_that_they_are_named_for(tiny: Cli) -> None:
    """Labels in the order of the split; the best evaluation's may be of an earlier step."""
    tiny("task=sst2", "method=lora", "optim.lr=1e-2", "train.eval_steps=1", "train.max_steps=12")
    run = only_run()
    rows = toy_text.generate("sst2", "validation", {"train": 64, "validation": 32}, 0)
    for folder, entry in (("final", run.record.final), ("best", run.record.best)):
        with gzip.open(run.folder / folder / "predictions.validation.jsonl.gz", "rt", encoding="utf-8") as file:
            found = [json.loads(line) for line in file]
        assert [row["label"] for row in found] == [row["label"] for row in rows]
        assert recomputed(run.folder / folder, "sst2") == entry["metrics"]
    tiny("task=sst2", "method=lora", "optim.lr=1e-2", "train.eval_steps=12", "train.max_steps=12")
    (single,) = (other for other in find_runs() if other.record.key != run.record.key)
    assert single.record.best == single.record.final  # the last step is the best one
    assert kept(single.folder / "best") == kept(single.folder / "final") == kept(run.folder / "final")


def test_a_look_before_the_first_step_is_logged_and_changes_nothing(tiny: Cli) -> None:
    command = ("task=sst2", "method=adalora", "optim.lr=1e-2")
    tiny(*command, "results.dir=plain")
    done = tiny(*command, "eval.untrained=true", "results.dir=looked")
    plain, looked = only_run("plain"), only_run("looked")
    first, *rest = looked.log
    assert first["t"] == 0
    assert set(first) == {"t", "evaluation"}
    assert set(first["evaluation"]) == {"accuracy"}
    assert rest == plain.log
    assert done.err.splitlines()[0].startswith("step 0/6  accuracy ")
    assert looked.record.measured() == plain.record.measured()
    assert looked.folder.relative_to("looked") == plain.folder.relative_to("plain")  # the same run
    for name in ("final", "best"):
        assert kept(looked.folder / name) == kept(plain.folder / name)
    assert tiny(*command, "results.dir=plain", "eval.untrained=true").out.startswith("already done")


def test_a_resumed_run_does_not_look_again_before_the_first_step(tiny: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    from adalora_repro.training import loop as training_loop

    command = ("task=sst2", "method=lora", "eval.untrained=true")
    with monkeypatch.context() as patch:
        patch.setattr(training_loop, "step", _killing(training_loop.step, at=3))
        assert tiny(*command).code == EXIT_TERMINATED
    assert tiny(*command).code == EXIT_OK
    tiny(*command, "results.dir=undisturbed")
    assert _same_as_undisturbed()
    assert [line["t"] for line in only_run().log if "evaluation" in line] == [0, 6]


# T from the examples that are good


@pytest.fixture
def broken_data() -> list[str]:
    """64 good lines and 36 bad ones in training, 32 and 3 in validation; the words that choose them."""
    sizes = {"train": 64, "validation": 32}
    for split, bad in (("train", 36), ("validation", 3)):
        rows: list[Any] = [*toy_text.generate("cola", split, sizes, 0)]
        for number in range(bad):
            rows.insert(2 * number, [{"sentence": "x", "label": 7}, "{broken", {"label": 0}][number % 3])
        write_jsonl(Path("broken") / "cola" / f"{split}.jsonl.gz", rows)
        write_jsonl(Path("good") / "cola" / f"{split}.jsonl.gz", toy_text.generate("cola", split, sizes, 0))
    return ["task=cola", "method=adalora", "optim.lr=1e-2", "data=local", *EPOCHS]


EPOCHS = ("train.max_steps=null", "train.epochs=2", "train.eval_steps=null")
SKIP = ("data.dir=broken", "data.skip_invalid=true")


def without_identity(run: Run) -> dict[str, Any]:
    measured = run.record.measured()
    key = measured["key"] | dict.fromkeys(("hash", "variant", "total_steps"))
    return {name: measured[name] for name in ("final", "best", "params", "budget", "rank_pattern")} | {"key": key}


def test_bad_rows_left_out_leave_the_run_of_the_good_ones(
    tiny: Cli, broken_data: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    for number, folder in enumerate(("a", "b")):  # the second time from the cache
        caplog.clear()
        done = tiny(*broken_data, *SKIP, f"results.dir={folder}")
        assert done.code == EXIT_OK, done.err
        assert "note: T = 26 counts one example for each row; bad rows go" in done.err  # 2 ceil(100 / 8)
        assert "note: 64 training examples, 8 steps an epoch, T = 16" in done.err
        told = [message for message in caplog.messages if "left out" in message]
        assert [message.partition(" bad")[0] for message in told] == ["cola train: 36", "cola validation: 3"], number
    record = only_run("a").record
    assert record.measured() == only_run("b").record.measured()
    assert record.data["rows"] == {"train": 64, "validation": 32}
    assert record.data["skipped"] == {"train": 36, "validation": 3}
    assert record.key["total_steps"] == record.progress["total_steps"] == record.final["step"] == 16
    assert record.settings["data.skip_invalid"] is True

    assert tiny(*broken_data, "data.dir=good", "results.dir=good-results").code == EXIT_OK
    good = only_run("good-results")
    assert good.record.key["total_steps"] == 16
    assert "skipped" not in good.record.data
    assert without_identity(only_run("a")) == without_identity(good)
    assert only_run("a").log == good.log
    assert kept(only_run("a").folder / "final") == kept(good.folder / "final")
    assert tiny(*broken_data, *SKIP, "results.dir=a").out.startswith(f"already done: {only_run('a').folder} ")


def skipped(results: str) -> dict[str, list[str]]:
    return json.loads((only_run(results).folder / "skipped.json").read_text(encoding="utf-8"))


def test_all_bad_rows_are_named_beside_the_record(tiny: Cli, broken_data: list[str]) -> None:
    shutil.copytree("broken", "moved")
    for results, folder in (("a", "broken"), ("b", "broken"), ("c", "moved")):  # b from the cache
        words = (f"data.dir={folder}", "data.skip_invalid=true", "train.max_steps=3", f"results.dir={results}")
        assert tiny(*broken_data, *words).code == EXIT_OK
        found = skipped(results)
        assert {split: len(lines) for split, lines in found.items()} == only_run(results).record.data["skipped"]
        assert [line.partition(": ")[0] for line in found["train"]] == [
            f"{folder}/cola/train.jsonl.gz:{2 * number + 1}" for number in range(36)
        ]
        kinds = {line.partition(": ")[2].split(" (")[0] for line in found["validation"]}
        assert kinds == {"label 7 is out of range, must be 0 to 1", "not JSON", "column 'sentence' is missing"}
    assert skipped("a") == skipped("b")
    assert only_run("a").folder.relative_to("a") == only_run("c").folder.relative_to("c")  # the same rows: the same run
    (only_run("a").folder / "metrics.json").unlink()
    assert tiny(*broken_data, *SKIP, "train.max_steps=3", "results.dir=a").code == EXIT_OK
    assert json.loads((only_run("a").folder / "skipped.old-1.json").read_text(encoding="utf-8")) == skipped("a")


def test_the_settings_of_the_record_are_those_the_loop_used(
    tiny: Cli, broken_data: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from adalora_repro.training import loop as training_loop

    loops, step = [], training_loop.step

    def spy(loop: Any, batches: Any) -> Any:
        loops.append(loop)
        return step(loop, batches)

    monkeypatch.setattr(training_loop, "step", spy)
    own = ("optim.warmup_steps=2000", "method.t_i=1000", "method.t_f=3000", "method.delta_t=900")  # of CoLA's 6,700
    assert tiny(*broken_data, *SKIP, *own, "train.log_steps=1").code == EXIT_OK
    loop, run = loops[-1], only_run()
    record, options = run.record, loop.method.options
    wanted = {"optim.warmup_steps": 5, "method.t_i": 2, "method.t_f": 7, "method.delta_t": 2}  # x 16 / 6,700
    assert {name: record.settings[name] for name in wanted} == wanted
    assert {f"method.{name}": getattr(options, name) for name in ("t_i", "t_f", "delta_t")} | {
        "optim.warmup_steps": 5
    } == wanted
    written = OmegaConf.load(run.folder / "config.yaml")
    assert {name: OmegaConf.select(written, name) for name in record.settings} == record.settings
    rates = [line["lr"] / record.key["lr"] for line in run.steps]  # what the next step takes
    assert rates == pytest.approx([min(t / 5, (16 - t) / 11) for t in range(1, 17)])
    assert record.budget is not None
    assert [record.budget[name] for name in ("t_i", "t_f", "delta_t")] == [2, 7, 2]
    for name in record.settings:
        assert OmegaConf.select(loop.plan.cfg, name, default=None) == record.settings[name] or name in (
            "data.fingerprint",
        )


def test_bad_rows_stop_a_run_that_does_not_skip_them(tiny: Cli, broken_data: list[str]) -> None:
    done = tiny(*broken_data, "data.dir=broken")
    assert done.code == EXIT_BAD_INPUT
    (line,) = done.err.splitlines()
    assert line.startswith("adalora-run: error: broken/cola/train.jsonl.gz:1: label 7 is out of range")
    assert line.endswith("; data.skip_invalid=true leaves such rows out")
    assert not Path("results").exists()


def test_a_run_with_a_settled_t_resumes(tiny: Cli, broken_data: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from adalora_repro.training import loop as training_loop

    with monkeypatch.context() as patch:
        patch.setattr(training_loop, "step", _killing(training_loop.step, at=9))
        assert tiny(*broken_data, *SKIP).code == EXIT_TERMINATED
    assert only_run().record.key["total_steps"] == 16
    resumed = tiny(*broken_data, *SKIP)
    assert resumed.code == EXIT_OK
    assert f"resuming {only_run().folder} at step 9 of 16\n" in resumed.err
    tiny(*broken_data, *SKIP, "results.dir=undisturbed")
    assert _same_as_undisturbed()
    assert [line["t"] for line in only_run().log if "evaluation" in line] == [8, 16]  # epochs of the good rows


# Other families


SQUAD = ["task=squad", "budget=0.08%", "task.max_length=192", "task.stride=32", "data.sample_validation_rows=8"]
XSUM = ["task=xsum", "budget=0.13%", "backbone=tiny-bart", "task.max_length=128", "task.max_target_length=12"]


@pytest.mark.parametrize(
    ("words", "metrics", "files"),
    [
        (SQUAD, {"exact", "f1"}, {"predictions.json", "nbest.jsonl.gz"}),
        (
            [*XSUM, "task.num_beams=2", "data.sample_validation_rows=8"],
            {"rouge1", "rouge2", "rougeL", "rougeLsum"},
            set(),
        ),
    ],
    ids=["squad", "xsum"],
)
def test_other_families_run_and_resume(
    tiny: Cli, monkeypatch: pytest.MonkeyPatch, words: list[str], metrics: set[str], files: set[str]
) -> None:
    from adalora_repro.training import loop as training_loop

    command = (*words, "method=adalora", "optim.lr=1e-2", "train.grad_accumulation=2")
    with monkeypatch.context() as patch:
        patch.setattr(training_loop, "step", _killing(training_loop.step, at=3))
        stopped = tiny(*command)
    assert stopped.code == EXIT_TERMINATED, stopped.err
    done = tiny(*command)
    assert done.code == EXIT_OK, done.err
    record = only_run().record
    assert metrics <= set(record.final["metrics"])
    assert record.data["rows"] == {"train": 64, "validation": 8}
    found = kept(only_run().folder / "final")
    assert found
    assert files <= set(found)
    assert found == kept(only_run().folder / "best")
    tiny(*command, "results.dir=undisturbed")
    assert _same_as_undisturbed()
    assert found == kept(only_run("undisturbed").folder / "final")


@pytest.mark.parametrize("method", ["adalora", "houlsby", "full"])
def test_the_same_seed_gives_the_same_bits_and_another_seed_another_run(tiny: Cli, method: str) -> None:
    command = ("task=cola", f"method={method}", "optim.lr=1e-3")
    for folder in ("a", "b"):
        assert tiny(*command, f"results.dir={folder}").code == EXIT_OK
    first, second = only_run("a"), only_run("b")
    assert first.record.measured() == second.record.measured()
    assert first.log == second.log
    tiny(*command, "results.dir=a", "seed=1")
    runs = find_runs("a")
    assert len(runs) == 2
    assert runs[0].record.key["variant"] == runs[1].record.key["variant"]
    assert runs[0].record.key["hash"] != runs[1].record.key["hash"]
    assert runs[0].log != runs[1].log


# Options of the loop


def test_accumulation_changes_memory_not_mathematics(tiny: Cli) -> None:
    command = ("task=cola", "method=adalora", "optim.lr=1e-3", "task.classifier_dropout=0", "train.log_steps=1", *QUIET)
    for parts in (1, 2, 3):  # 3 does not divide the 8 examples of a step
        assert tiny(*command, f"train.grad_accumulation={parts}", f"results.dir=r{parts}").code == EXIT_OK
    whole = only_run("r1")
    assert len({line["loss"] for line in whole.steps}) == 6
    for parts in (2, 3):
        run = only_run(f"r{parts}")
        assert [x["loss"] for x in run.steps] == pytest.approx([x["loss"] for x in whole.steps], rel=1e-4)
        assert [x["grad_norm"] for x in run.steps] == pytest.approx([x["grad_norm"] for x in whole.steps], rel=1e-2)
        assert [x["regularizer"] for x in run.steps] == pytest.approx([x["regularizer"] for x in whole.steps], rel=1e-3)
        assert run.record.rank_pattern == whole.record.rank_pattern


def test_bf16_runs_and_is_another_run(tiny: Cli) -> None:
    done = tiny("-m", "task=sst2", "method=adalora", "train.precision=fp32,bf16")
    assert done.code == EXIT_OK, done.err
    runs = {run.record.settings["train.precision"]: run for run in find_runs()}
    assert set(runs) == {"fp32", "bf16"}
    losses = [[line["loss"] for line in runs[precision].steps] for precision in ("fp32", "bf16")]
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], abs=0.02)


def test_padding_to_the_maximum_pads_every_batch(tiny: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    widths: list[int] = []
    collate = glue.Task.collate

    def spy(self: Any, rows: Any) -> Any:
        batch = collate(self, rows)
        widths.append(batch["input_ids"].shape[1])
        return batch

    monkeypatch.setattr(glue.Task, "collate", spy)
    assert tiny("task=sst2", "method=lora", "train.padding=max_length", "task.max_length=160").code == EXIT_OK
    assert set(widths) == {160}
    widths.clear()
    assert tiny("task=sst2", "method=lora", "task.max_length=160").code == EXIT_OK
    assert max(widths) < 160
    assert len(set(widths)) > 1


def test_the_released_protocol_is_another_run_of_the_same_budget(tiny: Cli) -> None:
    command = ("task=cola", "method=adalora", "optim.lr=1e-2", "method.gamma=0.5")
    for protocol in ("paper", "released"):
        assert tiny(*command, f"protocol={protocol}").code == EXIT_OK
    paper, released = find_runs()
    assert [run.record.key["protocol"] for run in (paper, released)] == ["paper", "released"]
    assert [x["regularizer"] for x in paper.steps] != [x["regularizer"] for x in released.steps]
    assert sum(released.record.rank_pattern.values()) == released.record.budget["b_T"]


def test_a_quick_look_evaluates_fewer_examples_and_says_so(tiny: Cli) -> None:
    assert tiny("task=sst2", "method=bitfit", "eval.max_examples=5").code == EXIT_OK
    record = only_run().record
    assert record.key["max_examples"] == 5
    assert record.data["rows"] == {"train": 64, "validation": 5}


def test_what_only_changes_how_it_runs_changes_nothing_measured(tiny: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adalora_repro.tasks.tokenized.ROWS", 10)
    tiny("task=sst2", "method=adalora", "optim.lr=1e-2", "results.dir=a")
    options = ("train.save_steps=1", "train.num_workers=1", "data.num_proc=3", "data.cache_dir=elsewhere")
    assert tiny("task=sst2", "method=adalora", "optim.lr=1e-2", "results.dir=b", *options).code == EXIT_OK
    assert only_run("a").record.measured() == only_run("b").record.measured()
    assert only_run("a").log == only_run("b").log


# Several runs


def test_a_multirun_makes_one_record_per_seed(tiny: Cli) -> None:
    done = tiny("-m", "task=sst2", "method=lora", "seed=0,1")
    assert done.code == EXIT_OK, done.err
    assert sorted(run.record.key["seed"] for run in find_runs()) == [0, 1]
    again = tiny("-m", "task=sst2", "method=lora", "seed=0,1")
    assert [line.partition(":")[0] for line in again.out.splitlines()] == ["already done"] * 2 + ["sweep"]


def test_a_bad_job_does_not_stop_the_others(tiny: Cli) -> None:
    done = tiny("-m", "task=sst2", "method=lora", "train.batch_size=8,0,16")
    assert done.code == EXIT_BAD_INPUT
    (line,) = (line for line in done.err.splitlines() if "error" in line)
    assert line.startswith("adalora-run: error: train.batch_size must be positive, not 0 (run: ")
    assert " train.batch_size=0 " in line
    assert sorted(run.record.settings["train.batch_size"] for run in find_runs()) == [8, 16]


def test_a_sweep_file_is_a_multirun(tiny: Cli) -> None:
    done = tiny("-m", "+sweep=seeds", "task=sst2", "method=lora", "dry_run=true")
    assert done.code == EXIT_OK, done.err
    seeds = [word for word in done.out.split() if word.startswith("seed=")]
    assert seeds == [f"seed={seed}" for seed in range(5)]
    assert done.out.splitlines()[-1] == "sweep: 5 planned"
    done = tiny("-m", "+sweep=lr", "task=sst2", "method=lora", "dry_run=true")
    assert done.out.count("\nfolder: ") == 10  # the rates of sweeps/lr.yaml


def test_an_interrupted_job_ends_the_sweep(tiny: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    from adalora_repro.training import loop as training_loop

    monkeypatch.setattr(training_loop, "step", _killing(training_loop.step, at=3))
    done = tiny("-m", "task=sst2", "method=lora", "seed=0,1")
    assert done.code == EXIT_TERMINATED
    assert only_run().record.key["seed"] == 0
    assert only_run().record.status == "cancelled"
    assert done.out.splitlines()[-1] == "sweep: 1 interrupted, 1 not started"


def _killing(step: Any, at: int, signum: int | None = None) -> Any:
    """``step`` that sends its own process a signal after step ``at``."""
    import signal

    def killed(loop: Any, batches: Any) -> Any:
        norm = step(loop, batches)
        if loop.t == at:
            os.kill(os.getpid(), signum or signal.SIGTERM)
        return norm

    return killed


# What goes wrong on the way


def test_a_loss_that_is_not_finite_ends_the_run_with_its_step(tiny: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    loss, calls = glue.Task.loss, []

    def spoilt(self: Any, model: Any, batch: Any) -> Any:
        value, n = loss(self, model, batch)
        calls.append(n)
        return (value * float("nan") if len(calls) == 4 else value), n

    monkeypatch.setattr(glue.Task, "loss", spoilt)
    done = tiny("task=sst2", "method=adalora", "train.save_steps=1", "train.log_steps=100")
    assert done.code == EXIT_FAILED
    run = only_run()
    record = run.record
    assert record.status == "failed"
    assert record.error == "NonFiniteLossError: the loss is nan at step 3; a lower optim.lr may help"
    assert record.final is None
    assert done.err.splitlines()[-1] == f"adalora-run: failed: {record.error}  ({run.folder})"
    assert "NonFiniteLossError" in (run.folder / "error.txt").read_text(encoding="utf-8")
    state, _ = checkpoint.load(run.folder, record.key["hash"])
    assert state is not None
    assert state["t"] == 3  # the last step before
    assert all(value.isfinite().all() for value in state["model"].values())

    monkeypatch.setattr(glue.Task, "loss", loss)
    assert tiny("task=sst2", "method=adalora").code == EXIT_OK
    assert only_run().record.status == "ok"
    assert not (run.folder / "error.txt").exists()


def test_a_failing_run_keeps_its_reason_where_its_traceback_cannot_be_written(
    tiny: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record says failed: text that is not UTF-8, no disk space for error.txt, a device that no longer responds."""

    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("a file's name: \udcff")

    def write_no_text(path: Path, *args: Any, **kwargs: Any) -> int:
        raise OSError(errno.EIO, "no", str(path))

    monkeypatch.setattr(runner, "run_loop", fail)
    assert tiny("task=sst2", "method=lora").code == EXIT_FAILED
    assert only_run().record.status == "failed"
    assert only_run().record.error == "RuntimeError: a file's name: \udcff"
    assert "\\udcff" in (only_run().folder / "error.txt").read_text(encoding="utf-8")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", write_no_text)
        patch.setattr(lora.Method, "summary", fail)
        assert tiny("task=sst2", "method=lora", "seed=1").code == EXIT_FAILED
    assert sorted(run.record.status for run in find_runs()) == ["failed", "failed"]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_that_lacks_characters_gets_the_plan_and_the_help(
    tiny: Cli, cli: Cli, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    for words in (["task=sst2", "dry_run=true"], ["--help"]):
        terminal = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        monkeypatch.setattr(sys, "stdout", terminal)
        assert (tiny if "dry_run=true" in words else cli)(*words).code == EXIT_OK
        terminal.flush()
        text = terminal.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]
        assert "method" in text
        assert "?" in text  # for an ellipsis


@pytest.mark.parametrize("words", [["task=sst2"], [*XSUM, "task.num_beams=2"]], ids=["glue", "summarization"])
@pytest.mark.parametrize(("at", "long"), [(4, 200), (6, 200), (6, 1)], ids=["saved", "evaluated", "long"])
def test_a_weight_that_is_not_finite_is_no_result(
    tiny: Cli, monkeypatch: pytest.MonkeyPatch, words: list[str], at: int, long: int
) -> None:
    """The losses are finite: it is the last update that spoils it. A generated summary would look like any other."""
    from adalora_repro.models import inject
    from adalora_repro.training import loop as training_loop

    step, names = training_loop.step, []

    def spoilt(loop: Any, batches: Any) -> Any:
        norm = step(loop, batches)
        if loop.t == at:
            name, parameter = list(inject.trained(loop.model).items())[3]
            parameter.data.view(-1)[-1] = float("nan")
            names.append(name)
        return norm

    sizes = ("data.sample_rows=16", "data.sample_validation_rows=8", "train.batch_size=4")
    command = (*words, *sizes, "method=lora", "train.save_steps=2", "train.eval_steps=6")
    monkeypatch.setattr(training_loop, "LONG_EVALUATION", long)
    with monkeypatch.context() as patch:
        patch.setattr(training_loop, "step", spoilt)
        done = tiny(*command)
    assert done.code == EXIT_FAILED
    run = only_run()
    record = run.record
    assert record.status == "failed"
    assert record.error == (
        f"NonFiniteLossError: {names[0]} is not finite after step {at - 1}; a lower optim.lr may help"
    )
    assert done.err.splitlines()[-1] == f"adalora-run: failed: {record.error}  ({run.folder})"
    assert done.out == ""
    assert (record.final, record.best) == (None, None)
    assert not (run.folder / "final").exists()
    assert not any("evaluation" in line for line in run.log)
    state, _ = checkpoint.load(run.folder, record.key["hash"])
    assert state is not None
    assert state["t"] == at - 2
    assert all(value.isfinite().all() for value in state["model"].values())

    assert tiny(*command).code == EXIT_OK  # from the checkpoint before
    assert tiny(*command, "results.dir=undisturbed").code == EXIT_OK
    assert _same_as_undisturbed()


def test_a_learning_rate_beyond_reason_fails_before_it_is_evaluated(tiny: Cli) -> None:
    done = tiny("task=sst2", "method=lora", "optim.lr=1e30", "optim.warmup_steps=0", "train.log_steps=100")
    assert done.code == EXIT_FAILED
    record = only_run().record
    assert record.status == "failed"
    assert "at step" in record.error
    assert (record.final, record.best) == (None, None)
    assert not list(only_run().folder.glob("*.pt"))


@pytest.mark.parametrize(
    "name", ["metrics.json", "checkpoint.new.pt", "config.yaml", "predictions.validation.jsonl.gz"]
)
def test_a_full_disk_costs_nothing_that_was_saved(tiny: Cli, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    command = ("task=sst2", "method=adalora", "train.save_steps=2")
    write_atomic, replaced = run_record.write_atomic, []

    def full(path: Path, content: bytes) -> None:
        replaced.append(path.name)
        if path.name == name and replaced.count(name) == (2 if name.startswith(("metrics", "check")) else 1):
            with monkeypatch.context() as patch:
                patch.setattr(os, "fsync", _no_space)
                write_atomic(path, content)
        write_atomic(path, content)

    for module in (run_record, checkpoint):
        monkeypatch.setattr(module, "write_atomic", full)
    done = tiny(*command)
    assert done.code == EXIT_BAD_INPUT
    (line,) = [line for line in done.err.splitlines() if not line.startswith("step ")]
    assert line.startswith("adalora-run: error: no space left in results/")
    monkeypatch.setattr(run_record, "write_atomic", write_atomic)
    monkeypatch.setattr(checkpoint, "write_atomic", write_atomic)
    if name != "config.yaml":
        run = only_run()
        assert run.record.status == "running"
        state, problems = checkpoint.load(run.folder, run.record.key["hash"])
        assert state is not None
        assert (state["t"], problems) == (4 if name.startswith("predictions") else 2, [])
        assert not [path.name for path in run.folder.iterdir() if path.name.startswith(".")]

    again = tiny(*command)
    assert again.code == EXIT_OK
    assert ("resuming" in again.err) == (name != "config.yaml")
    tiny(*command, "results.dir=undisturbed")
    assert _same_as_undisturbed()


def _no_space(handle: int) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_while_forcing_leaves_the_old_record(tiny: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny("task=sst2", "method=lora")
    before = (only_run().folder / "metrics.json").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", _no_space)
        assert tiny("task=sst2", "method=lora", "force=true").code == EXIT_BAD_INPUT
    kept = [path.read_bytes() for path in Path("results").rglob("metrics*.json")]
    assert kept == [before]


# Interrupted and resumed, in this process; tests/cli/test_kill.py kills real ones


@pytest.mark.parametrize(("signum", "code"), [(15, EXIT_TERMINATED), (2, EXIT_INTERRUPTED)])
def test_a_signal_ends_cleanly_and_the_same_command_resumes(
    tiny: Cli, monkeypatch: pytest.MonkeyPatch, signum: int, code: int
) -> None:
    from adalora_repro.training import loop as training_loop

    command = ("task=cola", "method=adalora", "optim.lr=1e-2", "train.eval_steps=2")
    with monkeypatch.context() as patch:
        patch.setattr(training_loop, "step", _killing(training_loop.step, at=3, signum=signum))
        stopped = tiny(*command)
    assert stopped.code == code
    record = only_run().record
    assert record.status == "cancelled"
    assert record.progress["step"] == 3
    assert "the same command resumes it" in record.error
    resumed = tiny(*command)
    assert resumed.code == EXIT_OK
    assert resumed.err.startswith(f"resuming {only_run().folder} at step 3 of 6\n")
    tiny(*command, "results.dir=undisturbed")
    assert only_run().record.measured() == only_run("undisturbed").record.measured()
    assert only_run().log == only_run("undisturbed").log


@pytest.fixture
def stopped(tiny: Cli, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """A command whose run was stopped after step 5, with checkpoints of steps 4 and 5."""
    from adalora_repro.training import loop as training_loop

    command = ("task=cola", "method=adalora", "optim.lr=1e-2", "train.save_steps=2")
    with monkeypatch.context() as patch:
        patch.setattr(training_loop, "step", _killing(training_loop.step, at=5))
        assert tiny(*command).code == EXIT_TERMINATED
    tiny(*command, "results.dir=undisturbed")
    return command


def _same_as_undisturbed() -> bool:
    found, expected = only_run(), only_run("undisturbed")
    for name in ("final", "best"):
        assert kept(found.folder / name) == kept(expected.folder / name)
    return found.record.measured() == expected.record.measured() and found.log == expected.log


def test_a_truncated_checkpoint_falls_back_to_the_one_before(tiny: Cli, stopped: tuple[str, ...]) -> None:
    newest = only_run().folder / "checkpoint.pt"
    newest.write_bytes(newest.read_bytes()[:-1000])
    done = tiny(*stopped)
    assert done.code == EXIT_OK
    lines = done.err.splitlines()
    assert lines[0] == f"adalora-run: {newest} cannot be read (BadZipFile), trying the one before"
    assert "at step 4 of 6" in lines[1]
    assert _same_as_undisturbed()


@pytest.mark.parametrize("names", [checkpoint.NAMES, checkpoint.NAMES[:1]], ids=["both", "one"])
def test_without_a_readable_checkpoint_it_starts_over(
    tiny: Cli, stopped: tuple[str, ...], names: tuple[str, ...]
) -> None:
    folder = only_run().folder
    (folder / checkpoint.NAMES[1]).unlink()
    for name in names:
        (folder / name).write_bytes(name.encode())
    done = tiny(*stopped)
    assert done.code == EXIT_OK
    kept = [name.replace(".pt", ".old-1.pt") for name in names]
    assert done.err.splitlines()[: len(names) + 1] == [
        *(f"adalora-run: {folder / name} cannot be read (BadZipFile)" for name in names),
        f"starting {folder} over at step 0 of 6; the checkpoints that were there stay until you remove them: "
        + ", ".join(kept),
    ]
    assert _same_as_undisturbed()
    assert sorted(path.name for path in folder.glob("*.pt")) == sorted(kept)
    assert [(folder / name).read_bytes() for name in kept] == [name.encode() for name in names]


def test_a_checkpoint_that_the_disk_does_not_give_is_left_alone(
    tiny: Cli, stopped: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    newest = only_run().folder / "checkpoint.pt"
    before = {path.name: path.read_bytes() for path in newest.parent.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", _failing(newest.name, OSError(errno.ESTALE, "Stale file handle")))
        done = tiny(*stopped)
    assert done.code == EXIT_BAD_INPUT
    assert done.err == (
        f"adalora-run: error: {newest} cannot be read (Stale file handle) and stays as it is: repeat the command when "
        "it can be, or force=true starts over beside it\n"
    )
    assert {path.name: path.read_bytes() for path in newest.parent.iterdir()} == before
    assert "at step 5 of 6" in tiny(*stopped).err


def _failing(name: str, error: Exception) -> Any:
    read = Path.read_bytes

    def failing(path: Path) -> bytes:
        if path.name == name:
            raise error
        return read(path)

    return failing


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you …")])
def test_no_memory_for_a_checkpoint_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise error

    checkpoint.save(tmp_path, {"hash": "0"})
    monkeypatch.setattr(torch, "load", full)
    with pytest.raises(type(error)):
        checkpoint.load(tmp_path, "0")


def test_a_checkpoint_that_went_meanwhile_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (1, 2):
        checkpoint.save(tmp_path, {"hash": "0", "t": step})
    monkeypatch.setattr(Path, "read_bytes", _failing("checkpoint.pt", FileNotFoundError()))
    assert checkpoint.load(tmp_path, "0") == ({"hash": "0", "t": 1}, [])


def test_a_checkpoint_of_another_configuration_is_refused(tiny: Cli, stopped: tuple[str, ...]) -> None:
    folder = only_run().folder
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    torch.save(state | {"hash": "0123456789"}, folder / "checkpoint.pt")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    done = tiny(*stopped)
    assert done.code == EXIT_BAD_INPUT
    assert done.err == (
        f"adalora-run: error: {folder / 'checkpoint.pt'} is from another configuration (0123456789, this one is "
        f"{state['hash']}); move it away to start over\n"
    )
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_checkpoint_of_another_version_falls_back_or_is_refused_in_one_line(
    tiny: Cli, stopped: tuple[str, ...]
) -> None:
    """It is intact, so training must not be lost: nothing on disk changes. All kinds: unit/test_checkpoints.py."""
    folder = only_run().folder
    older, newest = (folder / name for name in reversed(checkpoint.NAMES))
    state = torch.load(newest, weights_only=True)
    state["weights"] = state.pop("model")
    torch.save(state, newest)
    kept_aside = older.rename(folder.parent / "kept.pt")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    done = tiny(*stopped)
    assert done.code == EXIT_BAD_INPUT
    problem = f"{newest} is intact, but from another version of adalora-repro (model is missing)"
    assert done.err == (
        f"adalora-run: error: {problem}: finish the run with the version that wrote it, or start over with "
        "force=true, which keeps the checkpoint under another name\n"
    )
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    kept_aside.rename(older)
    again = tiny(*stopped)
    assert again.code == EXIT_OK
    assert again.err.splitlines()[:2] == [
        f"adalora-run: {problem}, trying the one before",
        f"resuming {folder} at step 4 of 6",
    ]
    assert _same_as_undisturbed()


def test_a_checkpoint_from_before_there_was_a_format_is_read(tiny: Cli, stopped: tuple[str, ...]) -> None:
    newest = only_run().folder / "checkpoint.pt"
    state = torch.load(newest, weights_only=True)
    assert state.pop("format") == checkpoint.VERSION
    torch.save(state | {"rng": state["rng"][0]}, newest)
    assert "at step 5 of 6" in tiny(*stopped).err
    assert _same_as_undisturbed()


def test_force_starts_over_and_keeps_what_was_there(tiny: Cli, stopped: tuple[str, ...]) -> None:
    folder = only_run().folder
    (folder / "error.txt").write_text("a traceback", encoding="utf-8")  # of a failure before
    names = (*checkpoint.NAMES, "error.txt")
    before = [(folder / name).read_bytes() for name in names]
    done = tiny(*stopped, "force=true")
    assert done.code == EXIT_OK
    assert done.err.startswith(
        f"starting {folder} over at step 0 of 6; the checkpoints that were there stay until you remove them: "
        "checkpoint.old-1.pt, checkpoint.previous.old-1.pt\n"
    )
    assert _same_as_undisturbed()
    kept = [Path(name).with_suffix(f".old-1{Path(name).suffix}") for name in names]
    assert [(folder / name).read_bytes() for name in kept] == before
    assert not [name for name in names if (folder / name).exists()]
    assert "starting" not in tiny(*stopped, "force=true").err  # a finished run has none
    assert sorted(path.name for path in folder.glob("*.old-2*")) == [
        *("best.old-2", "final.old-2", "log.old-2.jsonl", "metrics.old-2.json")
    ]


def test_two_processes_do_not_train_the_same_run(tiny: Cli, stopped: tuple[str, ...]) -> None:
    import fcntl

    folder = only_run().folder
    with (folder / ".lock").open("w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = tiny(*stopped)
        assert done.code == EXIT_BAD_INPUT
        assert done.err == f"adalora-run: error: {folder}: another process is training this run\n"
        assert (folder / ".lock").exists()
        (folder / ".lock").unlink()
    assert tiny(*stopped).code == EXIT_OK


def test_the_record_of_another_run_in_the_folder_is_not_taken_for_this_ones(tiny: Cli) -> None:
    assert tiny("task=sst2", "method=lora").code == EXIT_OK
    assert tiny("task=sst2", "method=lora", "seed=1").code == EXIT_OK
    first, second = sorted(Path("results").glob("runs/**/metrics.json"))
    second.write_bytes(first.read_bytes())
    refused = [tiny("task=sst2", "method=lora", f"seed={seed}") for seed in (0, 1)]
    assert sorted(done.code for done in refused) == [EXIT_OK, EXIT_BAD_INPUT]
    assert any("holds the record of another run" in done.err for done in refused)
    assert second.read_bytes() == first.read_bytes()


def test_a_run_that_another_process_finished_meanwhile_is_left_alone(
    tiny: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    from adalora_repro.config import plan as planning

    assert tiny("task=sst2", "method=lora").code == EXIT_OK
    (path,) = Path("results").glob("runs/**/metrics.json")
    before = path.read_bytes()
    monkeypatch.setattr(planning, "finished", lambda plan: None)  # what run.py saw, some seconds ago
    done = tiny("task=sst2", "method=lora")
    assert done.code == EXIT_OK
    assert "already done" in done.out
    assert path.read_bytes() == before
    assert not list(path.parent.glob("*old*"))
