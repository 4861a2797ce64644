"""Runs and their data: T from good examples and from windows, held-out rows, one prediction for all, other files."""

import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest
from conftest import Cli, Run, after_step, files_below, find_runs, ok, only_run, signal_after_step
from omegaconf import OmegaConf
from task_configs import write_jsonl

from adalora_repro.errors import EXIT_BAD_INPUT, EXIT_OK, EXIT_TERMINATED
from adalora_repro.tasks import glue, sources, toy_text
from adalora_repro.tasks.base import Evaluation
from adalora_repro.training import evaluate
from adalora_repro.training import loop as training_loop

# -- T from the examples that are good ------------------------------------------------------------------------------


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
    tiny: Cli, broken_data: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the run is stopped on the way, and goes on from the cached tokens."""
    with monkeypatch.context() as patch:
        signal_after_step(patch, 9)
        done = tiny(*broken_data, *SKIP)
    assert done.code == EXIT_TERMINATED, done.err
    assert "note: T = 26 counts one example for each row; bad rows" in done.err  # 2 ceil(100 / 8)
    assert "note: 64 training examples, 8 steps an epoch, T = 16" in done.err
    assert only_run().record.key["total_steps"] == 16
    assert tiny(*broken_data, *SKIP).code == EXIT_OK
    run = only_run()
    record = run.record
    assert record.data["rows"] == {"train": 64, "validation": 32}
    assert record.data["skipped"] == {"train": 36, "validation": 3}
    assert record.key["total_steps"] == record.progress["total_steps"] == record.final["step"] == 16
    assert record.settings["data.skip_invalid"] is True
    assert [line["t"] for line in run.log if "evaluation" in line] == [8, 16]  # epochs of the good rows

    assert tiny(*broken_data, "data.dir=good", "results.dir=good-results").code == EXIT_OK
    good = only_run("good-results")
    assert "skipped" not in good.record.data
    assert without_identity(run) == without_identity(good)
    assert run.log == good.log
    assert files_below(run.folder / "final") == files_below(good.folder / "final")
    assert tiny(*broken_data, *SKIP).out.startswith(f"already done: {run.folder} ")


def test_the_settings_of_the_record_are_those_the_loop_used(
    tiny: Cli, broken_data: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    states: list[Any] = []
    after_step(monkeypatch, 1, states.append)
    own = ("optim.warmup_steps=2000", "method.t_i=1000", "method.t_f=3000", "method.delta_t=900")  # of CoLA's 6,700
    assert tiny(*broken_data, *SKIP, *own, "train.log_steps=1").code == EXIT_OK
    (state,), run = states, only_run()
    record, options = run.record, state.method.options
    wanted = {"optim.warmup_steps": 5, "method.t_i": 2, "method.t_f": 7, "method.delta_t": 2}  # x 16 / 6,700
    assert {name: record.settings[name] for name in wanted} == wanted
    assert [getattr(options, name) for name in ("t_i", "t_f", "delta_t")] == [2, 7, 2]
    written = OmegaConf.load(run.folder / "config.yaml")
    assert {name: OmegaConf.select(written, name) for name in record.settings} == record.settings
    rates = [line["lr"] / record.key["lr"] for line in run.steps]  # what the next step takes
    assert rates == pytest.approx([min(t / 5, (16 - t) / 11) for t in range(1, 17)])
    assert [record.budget[name] for name in ("t_i", "t_f", "delta_t")] == [2, 7, 2]
    for name in record.settings:
        used = OmegaConf.select(state.plan.cfg, name, default=None)
        assert used == record.settings[name] or name == "data.fingerprint"


# -- SQuAD: windows, not rows, make T ----------------------------------------------------------------------------------


WINDOWS = ["task.max_length=112", "task.stride=16"]
CONTEXT = "Rollo led the Normans to France. " * 2
ROW = {"id": "a", "question": "Who led?", "context": CONTEXT, "answers": {"text": ["Rollo"], "answer_start": [0]}}


def local_rows(rows: dict[str, list[Any]]) -> list[str]:
    for split in ("train", "validation"):
        write_jsonl(Path("data") / "squad_v2" / f"{split}.jsonl.gz", rows.get(split, [ROW]))
    return ["task=squad_v2", "budget=0.08%", "method=lora", "data=local", "data.dir=data", *WINDOWS]


def test_windows_make_the_steps_of_an_epoch(tiny: Cli) -> None:
    words = ("task=squad_v2", *WINDOWS, "data.sample_rows=24", "method=adalora", "budget=0.08%")
    done = ok(tiny(*words, "train.max_steps=null", "train.epochs=2", "eval.max_examples=1"))
    record = only_run().record
    windows = record.data["windows"]["train"]
    steps = 2 * -(-windows // 8)
    assert windows > 24
    assert record.key["total_steps"] == record.final["step"] == record.progress["total_steps"] == steps
    assert len(only_run().steps) == steps // 2
    assert only_run().steps[-1]["lr"] == 0
    assert f"{windows:,} training examples, {steps // 2:,} steps an epoch, T = {steps:,}" in done.err


def test_bad_rows_stop_a_run_or_are_counted(tiny: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that show themselves in the file, and those that show themselves when they are tokenized."""
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # pytest's, in whose place a run has stderr
    elsewhere = ROW | {"id": "elsewhere", "answers": {"text": ["Rollo"], "answer_start": [1]}}
    long = ROW | {"id": "long", "question": "q" * 94}
    done = tiny(*local_rows({"train": [ROW, long]}), "method.schedule=absolute")  # which has a note of the warm-up
    assert (done.code, done.err.count("\n")) == (EXIT_BAD_INPUT, 1), done.err
    assert "id 'long': the question has 94 tokens" in done.err
    assert done.err.endswith("; data.skip_invalid=true leaves such rows out\n")
    command = local_rows({"train": [ROW, long, elsewhere], "validation": [ROW, elsewhere]})
    done = tiny(*command)
    assert (done.code, done.out) == (EXIT_BAD_INPUT, "")
    assert done.err == (
        "adalora-run: error: data/squad_v2/train.jsonl.gz:3: id 'elsewhere': the answer 'Rollo' is not at its offset "
        "1, there is 'ollo '; data.skip_invalid=true leaves such rows out\n"
    )
    assert [path.name for path in Path().iterdir()] == ["data"]
    for results in ("first", "second"):  # the second reads the cache
        done = ok(tiny(*command, "data.skip_invalid=true", "train.max_steps=1", f"results.dir={results}"))
        train, validation = (line for line in done.err.splitlines() if "left out" in line)
        assert train.startswith("squad_v2 train: 2 bad row(s) left out (data.skip_invalid=true): data/squad_v2/train")
        record = only_run(results).record
        assert record.data["skipped"] == {"train": 2, "validation": 1}
        assert record.data["rows"] == {"train": 1, "validation": 1}
        skipped = json.loads((only_run(results).folder / "skipped.json").read_text(encoding="utf-8"))
        assert validation.endswith("; ".join(skipped["validation"]))
        assert "squad_v2 train: id 'long': the question has 94 tokens" in skipped["train"][1]


# -- what is evaluated -------------------------------------------------------------------------------------------------


def test_the_best_checkpoint_is_that_of_the_held_out_split(tiny: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not on the reported split, which gets worse here, while the held-out split improves until step 4."""
    figures = {2: (0.9, 0.5), 4: (0.8, 0.7), 6: (0.7, 0.7)}

    def evaluation(loop: training_loop.RunState, watch: Any) -> Evaluation:
        reported, held = figures[loop.t]
        return Evaluation({"accuracy": reported}, holdout={"accuracy": held} if loop.plan.cfg.data.holdout else None)

    monkeypatch.setattr(evaluate, "evaluate", evaluation)
    command = ("task=sst2", "method=lora", "train.eval_steps=2")
    done = ok(tiny(*command, "data.holdout=4"))
    assert "; held out: accuracy 0.7000  (" in done.out
    assert only_run().record.best == {"metrics": {"accuracy": 0.8}, "holdout": {"accuracy": 0.7}, "step": 4}
    assert tiny(*command, "results.dir=without").code == EXIT_OK
    assert only_run("without").record.best == {"metrics": {"accuracy": 0.9}, "step": 2}


def test_one_class_for_all_examples_is_said_and_recorded(tiny: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    predict = glue.Task.predict

    def one_class(self: glue.Task, model: Any, batch: Any) -> Any:
        found = predict(self, model, batch)
        return found | {"prediction": found["prediction"] * 0 + 1}

    with monkeypatch.context() as patch:
        patch.setattr(glue.Task, "predict", one_class)
        words = ("task=mnli", "method=lora", "data.holdout=15")
        done = tiny(*words)
    assert done.code == EXIT_OK
    assert done.err.splitlines()[-1] == (
        "adalora-run: note: degenerate: the last evaluation gave every example the same prediction "
        "(validation_matched: class 1, validation_mismatched: class 1, holdout: class 1)"
    )
    assert only_run().record.degenerate is True
    assert ", degenerate); force=true" in tiny(*words).out
    assert "Degenerate: " in (only_run().folder / "model" / "README.md").read_text(encoding="utf-8")


def test_the_same_rows_in_other_files_are_the_same_run(tiny: Cli) -> None:
    """A run that was filed when data were identified by their bytes is found, and new seeds join it."""
    rows = [{"sentence": f"a film {row}", "label": row % 2} for row in range(20)]
    for split in ("train", "validation"):
        write_jsonl(Path("own") / "sst2" / f"{split}.jsonl.gz", rows)
        write_jsonl(Path("plain") / "sst2" / f"{split}.jsonl", rows, compress=False)
    command = ("task=sst2", "method=lora", "data=local")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "fingerprint", sources.byte_fingerprint)  # as it was
        assert tiny(*command, "data.dir=own").code == EXIT_OK
    (old,) = find_runs()
    assert old.record.settings["data.fingerprint"] == old.record.data["fingerprint"]
    done = tiny(*command, "data.dir=own")
    assert done.out.startswith(f"already done: {old.folder} ")
    assert tiny(*command, "data.dir=own", "seed=1").code == EXIT_OK
    assert {run.record.key["variant"] for run in find_runs()} == {old.record.key["variant"]}
    assert len(find_runs()) == 2

    elsewhere = (*command, "results.dir=new")
    assert tiny(*elsewhere, "data.dir=own").code == EXIT_OK
    assert only_run("new").record.key["variant"] != old.record.key["variant"]
    assert tiny(*elsewhere, "data.dir=plain").out.startswith("already done: ")

    for name in ("0", "z"):  # before and behind the run's own, in whatever order they are looked into
        (old.folder.parent / name).mkdir()
        os.mkfifo(old.folder.parent / name / "metrics.json")
        (old.folder.parent / f"{name}-folder" / "metrics.json").mkdir(parents=True)
    assert tiny(*command, "data.dir=own").out.startswith(f"already done: {old.folder} ")
