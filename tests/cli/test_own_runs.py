"""Files of one's own: docs/own.md as it stands, with tiny models; scores, steps, and what is refused in one line."""

import html
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from conftest import Cli, Run, ok, only_run, refused
from task_configs import write_jsonl

from adalora_repro.cli import report
from adalora_repro.errors import EXIT_OK

PAGE = (Path(__file__).parents[2] / "docs" / "own.md").read_text(encoding="utf-8")
SECTION = re.compile(r"^## (.+?)\n(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)
FILES = re.compile(r"`(\w+/\w+\.\w+)`")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TINY = ("backbone=tiny-bert", "train.device=cpu", "task.max_length=64", "optim.lr=1e-2")
MORE = {  # beside ``TINY``
    "Classes: from CSV to a table": ("task.max_length=64",),
    "Questions": ("task.stride=16",),
    "Summaries": ("backbone=tiny-bart", "task.max_target_length=8"),
}
ANSWERS = {"Classes: from CSV to a table": "probabilities", "Questions": "answer", "Summaries": "summary"}


def tiny(*words: str) -> tuple[str, ...]:
    keys = {word.partition("=")[0] for word in words}
    return (*(word for word in TINY if word.partition("=")[0] not in keys), *words)


@pytest.mark.parametrize("title", MORE)
def test_the_page(title: str, cli: Cli, ask: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    """Its files, then its three commands: a finished run, a table with its score, an answer for each text."""
    section = dict(SECTION.findall(PAGE))[title]
    blocks = dict(reversed(BLOCK.findall(section)))  # of each kind the first
    content = next(body for kind, body in blocks.items() if kind not in ("sh", "text"))
    for name in FILES.findall(section.partition("```")[0]):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(content, encoding="utf-8")
    train, table, predict = map(shlex.split, blocks["sh"].splitlines())
    if "text" in blocks:
        assert blocks["text"] in cli(*tiny(*train[1:], *MORE[title]), "dry_run=true").out
    assert cli(*tiny(*train[1:], *MORE[title])).code == EXIT_OK
    run, name = only_run(), train[2].partition("=")[2]
    assert run.folder.parts[3] == run.record.key["task"] == name
    capsys.readouterr()
    assert report.main(table[1:]) == EXIT_OK
    assert f" {name} " in capsys.readouterr().out
    said = ask(*(word.replace("RUN", str(run.folder)) for word in predict[1:]))
    answers = [json.loads(line) for line in said.out.splitlines()]
    assert len(answers) == len(predict[3:]) // len(run.record.settings["task.text_columns"])
    assert all(ANSWERS[title] in answer for answer in answers)
    assert ask("score", run.folder, "--data-dir", train[4].partition("=")[2]).code == EXIT_OK


def scores(folder: Path, *labels: Any, split: str = "train") -> None:
    rows = [{"text": f"row {number}", "label": label} for number, label in enumerate(labels)]
    write_jsonl(folder / f"{split}.jsonl", rows, compress=False)


def test_scores_and_a_run_again(cli: Cli, ask: Cli, tmp_path: Path) -> None:
    scores(tmp_path / "data", *(number / 4 for number in range(20)))
    words = ("task=custom", "data=local", f"data.dir={tmp_path / 'data'}", "task.num_labels=1", "method=lora")
    assert cli(*tiny(*words, "task.validation_share=4", "data.holdout=3")).code == EXIT_OK
    run = only_run()
    assert run.record.data["rows"] == {"train": 13, "validation": 4, "holdout": 3}
    assert run.record.primary_metric == "corr"
    assert set(json.loads(ask("predict", run.folder, "row 3").out)) == {"score"}
    assert "already done" in cli("--config", str(run.folder / "config.yaml")).out
    assert report.main(["html"]) == EXIT_OK
    typed = (run.folder / "config.yaml").read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
    assert html.escape(typed) in Path("results/report.html").read_text(encoding="utf-8")


def test_steps_follow_from_the_run_s_t(cli: Cli, tmp_path: Path) -> None:
    scores(tmp_path, *("no", "yes") * 60)
    words = ("task=custom", "data=local", f"data.dir={tmp_path}", "method=adalora_gamma0", "train.epochs=250")
    plan = cli(*tiny(*words, "method.t_f=400", "method.gamma=0.001"), "dry_run=true").out
    for line in (
        "T  1,000 ",  # 250 epochs of 4 steps, 108 rows
        "optim.warmup_steps 60 6% of T = 1000; conf/task/custom.yaml",
        "method.t_i 100 10% of T = 1000; conf/method/adalora.yaml",
        "method.t_f 400 command line",
        "method.delta_t 6 0.6% of T = 1000;",
        "gamma 0.001 weight of",
        "mask_events 84 masks until",
    ):
        assert " ".join(line.split()) in " ".join(plan.split())
    line = refused(cli(*tiny(*words), "method.schedule=scaled"))
    assert "method.schedule=scaled needs task.total_steps, which custom does not set" in line


CSV = "text,label\na,no\nb,yes\n"
#: train, validation, further words, the message
WRONG = {
    "column": (CSV, CSV, ["task.text_columns=[review]"], "csv:2: column 'review' is missing (found: text, label)"),
    "label": ("text\na\n", CSV, [], "'label' is missing (found: text); task.text_columns=[…] and task.label_column="),
    "class": (CSV, "text,label\na,no\n\nb,yse\n", [], "validation.csv:4: unknown label 'yse' (did you mean yes?)"),
    "names": (CSV, CSV, ["task.class_names=[no,maybe]"], "train.csv:3: unknown label 'yes'; valid: no, maybe"),
    "twice": (CSV, CSV, ["task.class_names=[no,yes,no]"], "class_names=['no', 'yes', 'no']: a name appears twice"),
    "number": (CSV, CSV, ["task.num_labels=3"], "task.num_labels=3, but the data have 2 classes: no, yes"),
    "empty": ("", CSV, [], "train.csv: empty; the train split of custom must have at least one row"),
    "header": (CSV, "text,label\n", [], "validation.csv: empty; the validation split of custom must have at least one"),
    "mixed": ("text,label\na,0\nb,yes\n", CSV, [], "train.csv:3: the label is the text 'yes', but the number 0 in "),
    "fraction": ("text,label\na,0.5\nb,1\n", CSV, [], "train.csv:2: the label is 0.5: task.num_labels=1 for a score"),
    "one": ("text,label\na,no\n", CSV, [], "column 'label' of the train split has no alone"),
    "cells": ('text,label\n"a\nb",no\nb,yes\nc,yes,1\n', CSV, [], "train.csv:5: 3 cells, but the first line names 2"),
    "quote": ('text,label\n"a" b,no\n', CSV, [], "train.csv:2: ',' expected after '\"'"),
    "share": (CSV, None, ["task.validation_share=null"], "no file validation.jsonl, .csv, .tsv or .parquet for the"),
    "large": (CSV, None, ["task.validation_share=9"], "task.validation_share=9: the train split has 2 rows"),
    "hub": (CSV, CSV, ["data=hub"], "task=custom has no data set on the hub: data=local data.dir=DIR reads your files"),
    "known": (CSV, CSV, ["task=sst2", "task.validation_share=1"], "task.validation_share: sst2 has a validation split"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_is_one_line(name: str, cli: Cli, tmp_path: Path) -> None:
    train, validation, words, message = WRONG[name]
    for split, text in (("train", train), ("validation", validation)):
        if text is not None:
            (tmp_path / f"{split}.csv").write_text(text, encoding="utf-8")
    known = {"task": "task=custom", "data": "data=local", "data.dir": f"data.dir={tmp_path}"}
    known |= {word.partition("=")[0]: word for word in words}
    assert message in refused(cli(*tiny(*known.values(), "method=lora")))


def test_a_bad_row_is_named_or_left_out(cli: Cli, tmp_path: Path) -> None:
    rows = [{"text": f"row {number}", "label": number % 2} for number in range(8)]
    write_jsonl(
        tmp_path / "train.jsonl", [*rows, {"text": 5, "label": 0}, {"text": "b", "label": None}], compress=False
    )
    words = tiny(
        "task=custom",
        "data=local",
        f"data.dir={tmp_path}",
        "method=lora",
        "task.validation_share=2",
        "task.max_length=5",
    )
    line = refused(cli(*words))
    assert "train.jsonl:10: column 'label' must be a class, text or a whole number, is None" in line
    done = ok(cli(*words, "data.skip_invalid=true"))
    assert "note: 6 of 6 training texts fill task.max_length=5: longer are cut\n" in done.err
    run: Run = only_run()
    assert run.record.data["rows"] == {"train": 6, "validation": 2}
    assert run.record.settings["task.class_names"] == ["0", "1"]
