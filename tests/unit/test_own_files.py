"""Files of one's own: the same rows are the same data in every format; what is read, and what follows from it."""

import csv
import gzip
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig
from task_configs import task_config, write_jsonl

from adalora_repro.config.identity import result_settings
from adalora_repro.errors import InputError
from adalora_repro.models.backbones import byte_tokenizer
from adalora_repro.tasks import load_family, own_files, row_files, sources

Row = dict[str, Any]
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=20)


def write_table(path: Path, rows: list[Row], delimiter: str = ",") -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, delimiter=delimiter)
        table.writerow(rows[0])
        for row in rows:
            cells = [row[name] for name in rows[0]]
            table.writerow([json.dumps(cell) if isinstance(cell, dict) else cell for cell in cells])


#: file name -> how rows are written
WRITERS: dict[str, Callable[[Path, list[Row]], Any]] = {
    "train.jsonl": lambda path, rows: write_jsonl(path, rows, compress=False),
    "train.jsonl.gz": write_jsonl,
    "train.csv": write_table,
    "train.tsv": lambda path, rows: write_table(path, rows, "\t"),
    "train.parquet": lambda path, rows: pd.DataFrame(rows).to_parquet(path),
}


def config(task: str, folder: Path, **options: Any) -> DictConfig:
    options = {"data__dir": str(folder), "data__cache_dir": str(folder / "cache")} | options
    return own_files.filled(task_config(task, "local", **options))[0]


def rows_of(cfg: DictConfig, split: str) -> list[Row]:
    return sources.load_split(cfg, split, load_family(cfg), sources.BadRows(False)).to_list()


LABELS = {"names": st.sampled_from("ab"), "numbers": st.sampled_from([3, 12]), "scores": st.floats(-9, 9)}


@settings(max_examples=6, phases=[Phase.explicit, Phase.generate])
@given(st.data())
def test_the_same_rows_are_the_same_data_in_every_format(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(sorted(LABELS)))
    rows = data.draw(st.lists(st.fixed_dictionaries({"text": TEXT, "label": LABELS[kind]}), min_size=2, max_size=10))
    ends = {"names": ["a", "b"], "numbers": [3, 12], "scores": [0.5, 2.0]}[kind]
    rows += [{"text": f"{number} ✓", "label": label} for number, label in enumerate(ends)]
    made = []
    for name, write in WRITERS.items():
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder) / name, rows)
            options = {"task__num_labels": 1} if kind == "scores" else {}
            cfg = config("custom", Path(folder), task__validation_share=2, **options)
            loaded = load_family(cfg).load(byte_tokenizer())
            splits = [loaded.train[:], *(split[:] for split in loaded.evaluation.values())]
            made.append([sources.fingerprint(cfg), list(cfg.task.class_names), loaded.provenance["rows"], splits])
    assert [each for each in made if each != made[0]] == []
    assert made[0][1] == {"names": ["a", "b"], "numbers": ["3", "12"], "scores": []}[kind]  # by size
    assert sum(made[0][2].values()) <= len(rows)


QUESTIONS = [
    {"query": f"q{number}?", "passage": f"{number} is it", "answers": {"text": ["is"], "answer_start": [2]}}
    for number in range(4)
]


@pytest.mark.parametrize("name", WRITERS)
def test_answers_are_an_object_or_its_json(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name, QUESTIONS)
    cfg = config("custom_qa", tmp_path, task__validation_share=1, task__text_columns=["query", "passage"])
    rows = rows_of(cfg, "train") + rows_of(cfg, "validation")
    assert sorted(rows, key=lambda row: row["id"]) == [
        {"id": str(number)} | row for number, row in enumerate(QUESTIONS)
    ]


def test_a_class_is_its_name_or_its_number(tmp_path: Path) -> None:
    rows = [{"text": "a", "label": label} for label in ("pos", 0, "neg", "1")]
    for split in ("train", "validation"):
        write_jsonl(tmp_path / "reviews" / f"{split}.jsonl", rows, compress=False)
    cfg = config("custom", tmp_path, task__name="reviews", task__class_names=["neg", "pos"])
    assert [row["label"] for row in rows_of(cfg, "train")] == [1, 0, 0, 1]
    assert (cfg.task.num_labels, cfg.task.validation_share, cfg.task.primary_metric) == (2, None, "accuracy")
    swapped = config("custom", tmp_path, task__name="reviews", task__class_names=["pos", "neg"])
    assert result_settings(cfg) != result_settings(swapped)


@pytest.mark.parametrize(
    ("label", "classes", "problem"),
    [
        (True, None, "train.jsonl:1: column 'label' must be a class, text or a whole number, is true"),
        (1.0, None, "train.jsonl:1: column 'label' must be a class, text or a whole number, is 1.0"),
        (1e39, 1, "train.jsonl:1: label 1e[+]39 is not a finite number of 32 bits"),
        (10**400, 1, "train.jsonl:1: label 1000.*is not a finite number of 32 bits"),
    ],
)
def test_a_label_that_is_none(tmp_path: Path, label: Any, classes: int | None, problem: str) -> None:
    write_jsonl(tmp_path / "train.jsonl", [{"text": "a", "label": label}] * 12, compress=False)
    with pytest.raises(InputError, match=problem):
        rows_of(config("custom", tmp_path, task__num_labels=classes), "train")


def test_a_part_of_train_is_the_validation_split(tmp_path: Path) -> None:
    """Rows of every class, the same wherever they are in the file; another part is other data."""
    rows = [{"text": f"row {number}", "label": "ab"[number % 2]} for number in range(40)]
    write_table(tmp_path / "train.csv", rows)
    cfg = config("custom", tmp_path)
    held, trained = (rows_of(cfg, split) for split in ("validation", "train"))
    assert [row["label"] for row in held].count(0) == 2 == len(held) / 2
    assert len(trained) == 36 == sources.train_rows(cfg)
    assert not {row["text"] for row in held} & {row["text"] for row in trained}
    before = {sources.fingerprint(config("custom", tmp_path, task__validation_share=share)) for share in (0.1, 0.2, 4)}
    assert len(before) == 3
    write_table(tmp_path / "train.csv", rows[::-1])
    again = config("custom", tmp_path)
    assert rows_of(again, "validation") == held[::-1]
    assert sources.fingerprint(again) not in before
    with pytest.raises(InputError, match=r"makes one validation split, custom has validation, one, two"):
        config("custom", tmp_path, task__validation={"_a": "one", "_b": "two"})


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("train.csv", "text,label\na,é\n".encode("latin-1"), "train.csv: cannot be read ('utf-8' codec"),
        ("train.csv", b"a,b,a\n1,2,3\n", "train.csv:1: column 'a' appears twice"),
        ("train.csv", b'a,b\n1,2\n"3,4\n', "train.csv:3: unexpected end of data"),
        ("train.tsv.gz", gzip.compress(b"a\tb\n1\t2\n", mtime=0)[:-9], "train.tsv.gz: cannot be read"),
        ("train.parquet", b"PAR1 and more", "train.parquet: cannot be read ("),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, name: str, content: bytes, problem: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as error:
        list(row_files.rows(tmp_path / name))
    assert problem in str(error.value)


def test_lines_of_a_table_are_those_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_bytes(b'\xef\xbb\xbftext,label\r\n"a\r\nb",no\r\n\r\nc,yes\r\n')
    found = [(where.rpartition(":")[2], row) for where, row in row_files.rows(tmp_path / "train.csv")]
    assert found == [("2", {"text": "a\r\nb", "label": "no"}), ("5", {"text": "c", "label": "yes"})]
