"""adalora-run on SQuAD: what a run leaves, the same after a kill; bad rows; windows, not rows, make T."""

from __future__ import annotations

import gzip
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Outcome, Run, only_run
from task_configs import REAL_DATA, needs_real_data, write_jsonl

from adalora_repro.errors import EXIT_BAD_INPUT, EXIT_OK
from adalora_repro.metrics.squad import squad_metrics

Cli = Callable[..., Outcome]
WINDOWS = ["task.max_length=112", "task.stride=16"]
RUN = [*WINDOWS, "data.sample_rows=24", "data.sample_validation_rows=12", "method=adalora", "budget=0.08%"]
CONTEXT = "Rollo led the Normans to France. " * 2
ROW = {"id": "a", "question": "Who led?", "context": CONTEXT, "answers": {"text": ["Rollo"], "answer_start": [0]}}


def content(run: Run, moment: str = "final") -> dict[str, Any]:
    folder = run.folder / moment
    files: dict[str, Any] = {path.name: json.loads(path.read_bytes()) for path in folder.glob("*.json")}
    with gzip.open(folder / "nbest.jsonl.gz", "rt", encoding="utf-8") as file:
        return files | {"nbest.jsonl.gz": [json.loads(line) for line in file]}


def check_files(run: Run, rows: list[dict[str, Any]], nullable: bool) -> None:
    """The files hold every question, and the record's figures follow from the predictions."""
    files = content(run)
    references = {row["id"]: row["answers"]["text"] for row in rows}
    assert set(files) == {"predictions.json", "nbest.jsonl.gz", *(["null_odds.json"] if nullable else [])}
    predictions, listed = files["predictions.json"], files["nbest.jsonl.gz"]
    assert list(predictions) == [row["id"] for row in listed] == list(references)
    metrics = run.record.final["metrics"]
    figures = {name: value for name, value in squad_metrics(predictions, references).items() if "total" not in name}
    if nullable:
        assert list(files["null_odds.json"]) == list(references)
        assert figures.keys() == {name for name in metrics if not name.startswith("best_")}
    else:
        figures = {name: figures[name] for name in ("exact", "f1")}
        assert figures.keys() == metrics.keys()
        assert all(predictions.values())
    assert {name: metrics[name] for name in figures} == figures
    assert run.log[-1]["evaluation"] == metrics
    contexts = {row["id"]: row["context"] for row in rows}
    for row in listed:
        assert predictions[row["id"]] == row["prediction"] in [answer["text"] for answer in row["n_best"]]
        for answer in row["n_best"]:
            if answer["start"] is not None:
                assert contexts[row["id"]].startswith(answer["text"], answer["start"])


def local_rows(rows: dict[str, list[Any]], task: str = "squad_v2") -> list[str]:
    for split in ("train", "validation"):
        write_jsonl(Path("data") / task / f"{split}.jsonl.gz", rows.get(split, [ROW]))
    return [f"task={task}", "budget=0.08%", "method=lora", "data=local", "data.dir=data", *WINDOWS]


# Whole runs


@pytest.mark.parametrize("task", ["squad", "squad_v2"])
def test_a_run_leaves_record_and_predictions(tiny: Cli, task: str) -> None:
    from adalora_repro.tasks import toy_text

    done = tiny(f"task={task}", *RUN, "train.eval_steps=3")
    assert done.code == EXIT_OK, done.err
    run = only_run()
    sizes = {"train": 24, "validation": 12}
    check_files(run, list(toy_text.generate(task, "validation", sizes, 0)), nullable=task == "squad_v2")
    assert sorted(path.name for path in run.folder.iterdir()) == [
        "best",
        "config.yaml",
        "final",
        "log.jsonl",
        "metrics.json",
        "model",
    ]
    data = run.record.data
    assert data["rows"] == sizes
    assert all(data["windows"][split] > sizes[split] for split in sizes)
    assert "skipped" not in data
    assert "Traceback" not in done.err
    assert not any("hash" in line for line in done.err.splitlines())


def test_windows_make_the_steps_of_an_epoch(tiny: Cli) -> None:
    words = [word for word in RUN if not word.startswith("train.max_steps")]
    done = tiny("task=squad_v2", *words, "train.max_steps=null", "train.epochs=2", "eval.max_examples=1")
    assert done.code == EXIT_OK, done.err
    record = only_run().record
    windows = record.data["windows"]["train"]
    steps = 2 * -(-windows // 8)
    assert windows > 24
    assert record.key["total_steps"] == record.final["step"] == record.progress["total_steps"] == steps
    assert len(only_run().steps) == steps // 2
    assert only_run().steps[-1]["lr"] == 0
    assert f"{windows:,} training examples, {steps // 2:,} steps an epoch, T = {steps:,}" in done.err
    budget = record.budget
    # the phases of the method file, at the paper's T of 98,800, scaled to the T of the windows
    from omegaconf import OmegaConf

    tuned = OmegaConf.load(ROOT / "conf" / "tuned" / "squad_v2_adalora.yaml").method
    least = {"t_i": 0, "t_f": 2, "delta_t": 1}
    paper = OmegaConf.load(ROOT / "conf" / "task" / "squad_v2.yaml").task.total_steps
    for name in least:
        value = tuned[name]
        assert budget[name] == max(min(least[name], value), round(value * steps / paper))
        assert record.settings[f"method.{name}"] == budget[name]


@needs_real_data
@pytest.mark.parametrize("task", ["squad", "squad_v2"])
def test_real_questions(tiny: Cli, task: str) -> None:
    rows = {}
    for split, count in (("train", 12), ("validation", 10)):
        with gzip.open(REAL_DATA / task / f"{split}.jsonl.gz", "rt", encoding="utf-8") as file:
            lines = [json.loads(line) for line in file]
        rows[split] = lines[:: len(lines) // count][:count]
    done = tiny(*local_rows(rows, task), "task.max_length=384", "task.stride=128")
    assert done.code == EXIT_OK, done.err
    check_files(only_run(), rows["validation"], nullable=task == "squad_v2")
    if task == "squad_v2":
        assert {"HasAns_f1", "NoAns_f1"} <= set(only_run().record.final["metrics"])


# Bad rows


def test_bad_rows_stop_a_run_or_are_counted(tiny: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that show themselves in the file, and those that show themselves when they are tokenized."""
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # pytest's, in whose place a run has stderr
    elsewhere = ROW | {"id": "elsewhere", "answers": {"text": ["Rollo"], "answer_start": [1]}}
    long = ROW | {"id": "long", "question": "q" * 94}
    command = local_rows({"train": [ROW, long, elsewhere], "validation": [ROW, elsewhere]})
    before = sorted(Path().rglob("*"))
    done = tiny(*command)
    assert (done.code, done.out) == (EXIT_BAD_INPUT, "")
    assert done.err == (
        "adalora-run: error: data/squad_v2/train.jsonl.gz:3: id 'elsewhere': the answer 'Rollo' is not at its offset "
        "1, there is 'ollo '; data.skip_invalid=true leaves such rows out\n"
    )
    assert sorted(Path().rglob("*")) == before
    for results in ("first", "second"):  # the second reads the cache
        done = tiny(*command, "data.skip_invalid=true", "train.max_steps=1", f"results.dir={results}")
        assert done.code == EXIT_OK, done.err
        train, validation = (line for line in done.err.splitlines() if "left out" in line)
        assert train.startswith("squad_v2 train: 2 bad row(s) left out (data.skip_invalid=true): data/squad_v2/train")
        record = only_run(results).record
        assert record.data["skipped"] == {"train": 2, "validation": 1}
        assert record.data["rows"] == {"train": 1, "validation": 1}
        skipped = json.loads((only_run(results).folder / "skipped.json").read_text(encoding="utf-8"))
        assert validation.endswith("; ".join(skipped["validation"]))
        assert "squad_v2 train: id 'long': the question has 94 tokens" in skipped["train"][1]
