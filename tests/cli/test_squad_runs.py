"""adalora-run on SQuAD: what a run leaves, the same after a kill; bad rows; windows, not rows, make T."""

from __future__ import annotations

import gzip
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, TINY, Outcome, Run, only_run
from task_configs import REAL_DATA, needs_real_data, write_jsonl
from test_kill import killed, resumed_as_if_nothing_had_happened

from adalora_repro.errors import EXIT_BAD_INPUT, EXIT_OK
from adalora_repro.tasks.squad import squad_metrics

Cli = Callable[..., Outcome]
WINDOWS = ["task.max_length=112", "task.stride=16"]
RUN = [*WINDOWS, "data.sample_rows=24", "data.sample_validation_rows=12", "method=adalora", "budget=0.08%"]
CONTEXT = "Rollo led the Normans to France. " * 2
ROW = {"id": "a", "question": "Who led?", "context": CONTEXT, "answers": {"text": ["Rollo"], "answer_start": [0]}}
NONE: dict[str, list[Any]] = {"text": [], "answer_start": []}


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


def test_a_quick_look_counts_questions(tiny: Cli) -> None:
    from adalora_repro.tasks import toy_text

    assert tiny("task=squad_v2", *RUN, "eval.max_examples=4").code == EXIT_OK
    run = only_run()
    rows = list(toy_text.generate("squad_v2", "validation", {"train": 24, "validation": 12}, 0))
    assert list(content(run)["predictions.json"]) == [rows[i]["id"] for i in (0, 3, 6, 9)]
    assert run.record.data["rows"] == {"train": 24, "validation": 4}
    assert run.record.data["windows"]["validation"] > 4
    assert run.record.key["max_examples"] == 4


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


# Killed

COMMAND = ["task=squad_v2", *RUN, "optim.lr=1e-2", "train.max_steps=8", "train.save_steps=2", "train.eval_steps=3"]
COMMAND = [*(word for word in TINY if word.split("=")[0] not in {w.split("=")[0] for w in COMMAND}), *COMMAND]


@pytest.mark.slow  # test_kill.py has a run of GLUE killed
def test_sigkill_costs_nothing(tiny: Cli, tmp_path: Path) -> None:
    killed(tmp_path / "cache", 2, tuple(COMMAND))  # the second checkpoint is that of step 4, behind an evaluation
    resumed_as_if_nothing_had_happened(tiny, tuple(COMMAND))
    for moment in ("final", "best"):
        assert len(list((only_run().folder / moment).iterdir())) == 3


# Bad rows

LONG = "Rollo. " + "x" * 9_994  # 10,001 bytes
BAD: dict[str, tuple[list[dict[str, Any]], str]] = {
    "elsewhere": ([{"answers": {"text": ["Rollo"], "answer_start": [1]}}], "'Rollo' is not at its offset 1"),
    "negative": ([{"answers": {"text": ["."], "answer_start": [-2]}}], "'.' is not at its offset -2"),
    "lines": ([{"answers": {"text": ["Ro\nllo"], "answer_start": [0]}}], "the answer 'Ro llo' is not at its offset 0"),
    "context": ([{"context": "  "}], "the context is empty"),
    "question": ([{"question": " "}], "the question is empty"),
    "form": ([{"answers": ["Rollo"]}], "column 'answers' must be {text: [text, …], answer_start: [integer, …]}"),
    "twice": ([{}, {}], "the id is also that of data/squad_v2/"),
    "missing": ([{"answers": ...}], "column 'answers' is missing"),
    "long context": ([{"context": LONG, "answers": NONE}], "the context has 10,001 tokens, more than 10,000"),
    "long question": ([{"question": "q" * 94}], "the question has 94 tokens, which leaves no room for a context"),
}


def bad_rows(changes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A good row, the changed ones (``...``: without the column), and another good one."""
    rows = [{k: v for k, v in (ROW | {"id": "bad"} | change).items() if v is not ...} for change in changes]
    return [ROW, *rows, ROW | {"id": "z"}]


@pytest.mark.parametrize(("changes", "words"), BAD.values(), ids=BAD)
def test_a_bad_row_stops_the_run(tiny: Cli, changes: list[dict[str, Any]], words: str) -> None:
    split = "train" if words.startswith("the context") else "validation"
    command = local_rows({split: bad_rows(changes)})
    before = sorted(Path().rglob("*"))
    done = tiny(*command)
    assert done.code == EXIT_BAD_INPUT, done.err
    assert done.out == ""
    (line,) = done.err.splitlines()
    assert line.startswith("adalora-run: error: ")
    assert "id 'bad'" in line or (f"{split}.jsonl.gz:2" in line and "missing" in words)
    assert split in line
    assert words in line
    assert line.endswith("data.skip_invalid=true leaves such rows out")
    assert sorted(Path().rglob("*")) == before


def test_bad_rows_left_out_are_counted(tiny: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # pytest's, in whose place a run has stderr
    bad = [row | {"id": name} for name, (changes, _) in BAD.items() for row in bad_rows(changes)[1:-1]]
    bad = [row for row in bad if row["id"] != "twice"] + [ROW]  # an id that a good row has
    rows = [ROW, *bad, ROW | {"id": "z"}]
    command = [*local_rows({"train": rows, "validation": rows[:3]}), "data.skip_invalid=true", "train.max_steps=1"]
    for results in ("first", "second"):  # the second reads the cache
        done = tiny(*command, f"results.dir={results}")
        assert done.code == EXIT_OK, done.err
        train, validation = (line for line in done.err.splitlines() if "left out" in line)
        assert train.startswith("squad_v2 train: 10 bad row(s) left out (data.skip_invalid=true): data/squad_v2/train")
        assert train.endswith(" and 7 more, see skipped.json")
        assert validation == (
            "squad_v2 validation: 2 bad row(s) left out (data.skip_invalid=true): "
            "data/squad_v2/validation.jsonl.gz:2: id 'elsewhere': the answer 'Rollo' is not at its offset 1, there is "
            "'ollo '; data/squad_v2/validation.jsonl.gz:3: id 'negative': the answer '.' is not at its offset -2, "
            "there is ''"
        )
        record = only_run(results).record
        assert record.data["skipped"] == {"train": 10, "validation": 2}
        assert record.data["rows"] == {"train": 2, "validation": 1}
        skipped = json.loads((only_run(results).folder / "skipped.json").read_text(encoding="utf-8"))
        assert {split: len(lines) for split, lines in skipped.items()} == record.data["skipped"]
        assert validation.endswith("; ".join(skipped["validation"]))
        assert all(line.startswith("data/squad_v2/train.jsonl.gz:") for line in skipped["train"][:8])
        assert sorted(line.split("id '")[1].partition("'")[0] for line in skipped["train"] if "id '" in line)


def test_a_context_of_ten_thousand_tokens_is_read(tiny: Cli) -> None:
    row = ROW | {"context": LONG[:-1]}
    command = local_rows({"train": [row], "validation": [row]})
    assert tiny(*command, "train.max_steps=1", "task.max_length=500").code == EXIT_OK
    assert only_run().record.data["windows"]["train"] == 1 + -(-(10_000 - 489) // (489 - 16))


def test_squad_1_needs_an_answer(tiny: Cli) -> None:
    command = local_rows({"validation": [ROW, ROW | {"id": "bad", "answers": NONE}]}, "squad")
    done = tiny(*command)
    assert done.code == EXIT_BAD_INPUT
    (line,) = done.err.splitlines()
    assert "id 'bad': no answer, but every question of squad has one (task=squad_v2 allows none)" in line
