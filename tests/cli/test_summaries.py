"""adalora-run on XSum and CNN/DailyMail with tiny-bart: three methods, files, bad input."""

from __future__ import annotations

import gzip
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Outcome, Run, only_run
from task_configs import REAL_DATA, needs_real_data, write_jsonl

from adalora_repro.errors import EXIT_BAD_INPUT, EXIT_OK
from adalora_repro.metrics import rouge
from adalora_repro.tasks import toy_text

Cli = Callable[..., Outcome]
METHODS = ("adalora", "full", "houlsby")
#: tiny-bart with weights large enough to tell documents apart; T = 4
SMALL = (
    "task=xsum",
    "backbone=tiny-bart",
    "+backbone.architecture.init_std=0.2",
    "task.max_length=64",
    "task.max_target_length=16",
    "task.num_beams=2",
    "data.sample_rows=16",
    "data.sample_validation_rows=10",
    "train.batch_size=4",
    "train.max_steps=4",
    "optim.lr=1e-2",
)


@pytest.fixture
def summaries(tiny: Cli) -> Cli:
    """``tiny`` with the settings of ``SMALL``; a word given again wins."""

    def call(*words: str) -> Outcome:
        keys = {word.split("=")[0] for word in words}
        return tiny(*[word for word in SMALL if word.split("=")[0] not in keys], *words)

    return call


def predictions(run: Run, folder: str = "final") -> list[dict[str, Any]]:
    with gzip.open(run.folder / folder / "predictions.jsonl.gz", "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def check_scores(run: Run, references: dict[str, str], folder: str = "final") -> list[dict[str, Any]]:
    """The kept predictions, scored again, are what the record says."""
    rows = predictions(run, folder)
    assert [row["id"] for row in rows] == list(references)
    scores = rouge.rouge_scores([row["prediction"] for row in rows], list(references.values()))
    for name in rouge.NAMES:
        assert [row[name] for row in rows] == scores[name]
    metrics = dict((run.record.final if folder == "final" else run.record.best)["metrics"])  # type: ignore[index]
    assert metrics.pop("written_tokens") > 0
    assert metrics == rouge.summarize(scores)
    for name in rouge.NAMES:
        assert metrics[f"{name}_low"] <= metrics[name] <= metrics[f"{name}_high"]
    return rows


def sampled(rows: int = 10) -> dict[str, str]:
    made = toy_text.generate("xsum", "validation", {"train": 16, "validation": rows}, 0)
    return {row["id"]: row["summary"] for row in made}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_and_is_scored(summaries: Cli, method: str) -> None:
    done = summaries(f"method={method}", "budget=0.13%", "train.eval_steps=2")
    assert done.code == EXIT_OK, done.err
    run = only_run()
    assert run.folder.parts[1:5] == ("runs", "tiny-bart", "xsum", method)
    record = run.record
    assert record.status == "ok"
    assert record.primary_metric == "rouge2"
    assert record.key["budget"] == ("0.13%" if method not in ("full", "bitfit") else method)
    assert (record.final["step"], record.key["total_steps"]) == (4, 4)  # type: ignore[index]
    rows = check_scores(run, sampled())
    check_scores(run, sampled(), "best")
    assert len({row["prediction"] for row in rows}) > 1
    assert [line["t"] for line in run.log if "evaluation" in line] == [2, 4]
    assert all(np.isfinite(line["loss"]) for line in run.steps)
    # the console shows what the task is about, without intervals
    assert done.out.startswith("done: rouge1 ")
    assert "rouge1_low" not in done.out
    if method == "adalora":
        assert record.rank_pattern is not None
        assert sum(record.rank_pattern.values()) == record.budget["b_T"] == 32  # type: ignore[index]
    else:
        assert record.rank_pattern is None


def test_a_quick_look_is_recorded_and_spread(summaries: Cli) -> None:
    assert summaries("method=lora", "budget=0.13%", "eval.max_examples=4").code == EXIT_OK
    run = only_run()
    assert run.record.key["max_examples"] == 4
    assert run.record.data["rows"] == {"train": 16, "validation": 4}
    references = list(sampled().items())
    check_scores(run, dict(references[i] for i in (0, 2, 5, 7)))


def test_gradient_checkpointing_changes_nothing_but_its_setting(summaries: Cli) -> None:
    words = ("method=adalora", "budget=0.26%", "train.eval_steps=2", "train.grad_accumulation=2")
    found = {}
    for flag in ("false", "true"):
        folder = f"results-{flag}"
        done = summaries(*words, f"backbone.gradient_checkpointing={flag}", f"results.dir={folder}")
        assert done.code == EXIT_OK, done.err
        run = only_run(folder)
        measured = run.record.measured()
        assert measured["settings"].pop("backbone.gradient_checkpointing") is (flag == "true")
        for name in ("hash", "variant"):  # they cover the settings
            del measured["key"][name]
        found[flag] = measured, run.log, predictions(run)
    assert found["true"] == found["false"]


# Data that are not as they should be


def row(number: int, **changes: Any) -> dict[str, Any]:
    text = "Rain fell on the town. Two roads were closed until noon, the police said."
    return {
        "id": f"n{number}",
        "document": f"{number} days ago. {text}",
        "summary": f"{number} roads closed.",
    } | changes


def without(line: dict[str, Any], column: str) -> dict[str, Any]:
    return {name: value for name, value in line.items() if name != column}


def local(root: Path, train: list[Any], validation: list[Any] | None = None, name: str = "xsum") -> list[str]:
    write_jsonl(root / name / "train.jsonl.gz", train)
    write_jsonl(root / name / "validation.jsonl.gz", validation or [row(i) for i in range(4)])
    return ["data=local", f"data.dir={root}", f"task={name}"]


#: the third row of a file -> what is said of it
BAD: list[tuple[dict[str, Any], str]] = [
    (row(2, document=""), "id 'n2': the document is empty"),
    (row(2, document=" \n "), "id 'n2': the document is empty"),
    (row(2, summary=""), "id 'n2': the summary is empty"),
    (row(2, summary="\t"), "id 'n2': the summary is empty"),
    (row(2, summary=None), "id 'n2': column 'summary' must be text, is null"),
    (row(2, document=3), "id 'n2': column 'document' must be text, is a number"),
    (without(row(2), "document"), "id 'n2': column 'document' is missing (found: id, summary)"),
    (without(row(2), "summary"), "id 'n2': column 'summary' is missing (found: id, document)"),
    (without(row(2), "id"), "column 'id' is missing (found: document, summary)"),
    (row(1), "id 'n1': the id is also that of {path}:2"),
]


def refused(done: Outcome) -> str:
    assert done.code == EXIT_BAD_INPUT, (done.out, done.err)
    assert done.out == ""
    (line,) = done.err.splitlines()
    assert "Traceback" not in line
    return line.removeprefix("adalora-run: error: ")


def test_bad_rows_are_left_out_on_demand(summaries: Cli, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    train = [row(0), *(bad for bad, _ in BAD), *(row(i) for i in range(20, 26))]  # n1 is there only once
    validation = [row(0), row(1, summary=None), row(2), row(3), row(0, summary="again")]
    words = local(tmp_path, train, validation)
    done = summaries(
        *(*words, "method=adalora", "budget=0.13%", "data.skip_invalid=true"),
        *("train.max_steps=null", "train.epochs=2", "train.batch_size=2"),
    )
    assert done.code == EXIT_OK, done.err
    record = only_run().record
    assert record.data["skipped"] == {"train": 9, "validation": 2}
    assert record.data["rows"] == {"train": 8, "validation": 3}
    assert record.key["total_steps"] == record.final["step"] == 8  # type: ignore[index]
    path = tmp_path / "xsum" / "train.jsonl.gz"
    assert any("8 training examples, 4 steps an epoch, T = 8" in note for note in done.err.splitlines())
    skipped = json.loads((only_run().folder / "skipped.json").read_text(encoding="utf-8"))
    found = [line.partition(": ")[2] for line in skipped["train"]]
    assert found == [problem for _, problem in BAD[:-1]]
    assert any(
        text.startswith("xsum train: 9 bad row(s) left out (data.skip_invalid=true): ") for text in caplog.messages
    )
    line = refused(summaries(*words, "method=lora", "budget=0.13%"))
    assert line == f"{path}:2: {BAD[0][1]}; data.skip_invalid=true leaves such rows out"
    assert [line["id"] for line in predictions(only_run())] == ["n0", "n2", "n3"]


def test_bart_is_only_for_summaries(tiny: Cli) -> None:
    line = refused(tiny("task=sst2", "budget=0.3M", "backbone=tiny-bart", "method=lora", "task.max_length=256"))
    valid = "valid: deberta-v3-base, minilm, tiny-bert, tiny-deberta, tiny-roberta"
    assert line == f"task=sst2 needs an encoder, backbone 'tiny-bart' is an encoder-decoder; {valid}"
    assert not Path("results").exists()


# Real data


@needs_real_data
def test_real_documents(summaries: Cli, tmp_path: Path) -> None:
    rows = {}
    for split, count in (("train", 8), ("validation", 5)):
        with gzip.open(REAL_DATA / "cnn_dailymail" / f"{split}.jsonl.gz", "rt", encoding="utf-8") as file:
            rows[split] = [json.loads(line) for line in itertools.islice(file, count)]
    words = local(tmp_path, rows["train"], rows["validation"], "cnn_dailymail")
    options = ["task.max_length=512", "task.max_target_length=40", "train.max_steps=3"]
    done = summaries(*words, *options, "method=adalora", "budget=0.26%")
    assert done.code == EXIT_OK, done.err
    check_scores(only_run(), {line["id"]: line["highlights"] for line in rows["validation"]})
