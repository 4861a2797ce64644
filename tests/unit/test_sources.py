"""Rows of the three sources, and one line for each way in which a user's data can be wrong."""

from __future__ import annotations

import gzip
import json
import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, Features, Value
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig
from task_configs import REAL_DATA, ROOT, TASKS, needs_real_data, task_config, write_jsonl

from adalora_repro.errors import InputError
from adalora_repro.tasks import families, load_family, sources
from adalora_repro.tasks.base import BaseTask

GOOD_ROWS: dict[str, dict[str, Any]] = {
    "sst2": {"sentence": "a fine film", "label": 1, "idx": 0},
    "mnli": {"premise": "a", "hypothesis": "b", "label": 2, "idx": 0},
    "stsb": {"sentence1": "a", "sentence2": "b", "label": 5, "idx": 0},
    "squad": {
        "id": "1",
        "title": "t",
        "context": "Paris is in France",
        "question": "Where is Paris?",
        "answers": {"text": ["France"], "answer_start": [12], "extra": 1},
    },
    "xsum": {"document": "long", "summary": "short", "id": "1"},
}


def local(tmp_path: Path, task: str, train: list[Any] | None = None, validation: list[Any] | None = None) -> DictConfig:
    cfg = task_config(task, "local", data__dir=str(tmp_path))
    good = [GOOD_ROWS[task]]
    write_jsonl(tmp_path / task / "train.jsonl.gz", good if train is None else train)
    for split in cfg.task.validation.values():
        write_jsonl(tmp_path / task / f"{split}.jsonl.gz", good if validation is None else validation)
    return cfg


def check(cfg: DictConfig) -> None:
    sources.check(cfg, load_family(cfg))


def load(cfg: DictConfig, split: str, bad: sources.BadRows | None = None) -> Dataset:
    """A split by the rules of its family; a bad row stops it unless ``bad`` takes it."""
    return sources.load_split(cfg, split, load_family(cfg), bad or sources.BadRows(False))


@pytest.mark.parametrize("task", GOOD_ROWS)
def test_a_local_file_gives_the_columns_of_its_task(tmp_path: Path, task: str) -> None:
    another = GOOD_ROWS[task] | ({"id": "2"} if "id" in GOOD_ROWS[task] else {})
    cfg = local(tmp_path, task, train=[GOOD_ROWS[task], "", another | {"unused": [1]}])
    check(cfg)
    rows = load(cfg, "train")
    ids = [] if cfg.task.family == "glue" else ["id"]
    assert sorted(rows.column_names) == sorted([*ids, *cfg.task.text_columns, cfg.task.label_column])
    assert len(rows) == sources.train_rows(cfg) == 2  # the blank line is none
    assert rows[1] == rows[0] | ({"id": "2"} if ids else {})
    if task == "stsb":
        assert rows[0]["label"] == 5.0
    if task == "squad":
        assert rows[0]["answers"] == {"text": ["France"], "answer_start": [12]}


def test_plain_files_are_read_too(tmp_path: Path) -> None:
    cfg = task_config("sst2", "local", data__dir=str(tmp_path))
    write_jsonl(tmp_path / "sst2" / "train.jsonl", [GOOD_ROWS["sst2"]] * 3, compress=False)
    write_jsonl(tmp_path / "sst2" / "validation.jsonl", [GOOD_ROWS["sst2"]], compress=False)
    check(cfg)
    assert sources.train_rows(cfg) == len(load(cfg, "train")) == 3


def test_two_files_of_one_split_are_refused(tmp_path: Path) -> None:
    cfg = local(tmp_path, "sst2")
    other = write_jsonl(tmp_path / "sst2" / "validation.jsonl", [GOOD_ROWS["sst2"]], compress=False)
    with pytest.raises(InputError) as error:
        check(cfg)
    assert str(error.value) == f"{other}.gz and {other} both hold the validation split; move one away"


BAD_LINES = [
    ("sst2", "{broken", "not JSON"),
    ("sst2", '"text"', "not an object but text"),
    ("sst2", {"text": "x", "label": 0}, "column 'sentence' is missing (found: text, label)"),
    ("sst2", {"sentence": "x"}, "column 'label' is missing"),
    ("sst2", {"sentence": 3, "label": 0}, "column 'sentence' must be text, is a number"),
    ("sst2", {"sentence": None, "label": 0}, "column 'sentence' must be text, is null"),
    ("sst2", {"sentence": "x", "label": 2}, "label 2 is out of range, must be 0 to 1"),
    ("sst2", {"sentence": "x", "label": -1}, "label -1 is out of range, must be 0 to 1"),
    ("sst2", {"sentence": "x", "label": 0.5}, "label 0.5 is not an integer"),
    ("sst2", {"sentence": "x", "label": True}, "column 'label' must be a number, is true or false"),
    ("sst2", {"sentence": "x", "label": "1"}, "column 'label' must be a number, is text"),
    ("mnli", {"premise": "a", "hypothesis": "b", "label": 3}, "label 3 is out of range, must be 0 to 2"),
    ("stsb", {"sentence1": "a", "sentence2": "b", "label": 5.1}, "label 5.1 is out of range, must be 0 to 5"),
    ("stsb", '{"sentence1": "a", "sentence2": "b", "label": NaN}', "label nan is out of range"),
    ("squad", GOOD_ROWS["squad"] | {"answers": ["France"]}, "column 'answers' must be {text"),
    ("squad", GOOD_ROWS["squad"] | {"answers": {"text": ["France"], "answer_start": [11]}}, "not at its offset 11"),
    ("squad", GOOD_ROWS["squad"] | {"id": 1}, "column 'id' must be text, is a number"),
    ("squad", {k: v for k, v in GOOD_ROWS["squad"].items() if k != "id"}, "column 'id' is missing"),
    ("sst2", '{"sentence": "x\\ud800", "label": 0}', "column 'sentence' has half of a surrogate pair"),
    ("sst2", "[" * 100_000, "not JSON"),
    ("sst2", "{}", "column 'sentence' is missing (found: none)"),
    ("xsum", {"document": "x", "id": "1"}, "column 'summary' is missing"),
    ("xsum", {"document": "x", "summary": 1, "id": "1"}, "column 'summary' must be text, is a number"),
]


@pytest.mark.parametrize(("task", "line", "message"), BAD_LINES)
def test_a_bad_line_is_named(tmp_path: Path, task: str, line: Any, message: str) -> None:
    cfg = local(tmp_path, task, validation=[GOOD_ROWS[task], "", line])
    split = next(iter(cfg.task.validation.values()))
    with pytest.raises(InputError) as error:
        load(cfg, split)
    assert str(error.value).startswith(f"{tmp_path / task / split}.jsonl.gz:3: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert str(error.value).endswith("; data.skip_invalid=true leaves such rows out")
    named = isinstance(line, dict) and isinstance(line.get("id"), str)
    assert (".jsonl.gz:3: id '1': " in str(error.value)) == named

    bad = sources.BadRows(True)
    assert len(load(cfg, split, bad)) == 1
    (problem,) = bad.problems
    assert f"{problem}; data.skip_invalid=true leaves such rows out" == str(error.value)


def test_text_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    cfg = local(tmp_path, "sst2")
    (tmp_path / "sst2" / "train.jsonl.gz").write_bytes(gzip.compress(b'{"sentence": "\xe9", "label": 0}\n'))
    with pytest.raises(InputError, match=r"train\.jsonl\.gz:1: not JSON"):
        load(cfg, "train")


TRUNCATED = gzip.compress(b'{"sentence": "x", "label": 0}\n' * 99, mtime=0)[:-20]


@pytest.mark.parametrize("damage", [b"no gzip at all", TRUNCATED], ids=["foreign", "truncated"])
def test_a_damaged_archive_is_named(tmp_path: Path, damage: bytes) -> None:
    cfg = local(tmp_path, "sst2")
    (tmp_path / "sst2" / "train.jsonl.gz").write_bytes(damage)
    for read in (lambda: load(cfg, "train"), lambda: sources.train_rows(cfg)):
        with pytest.raises(InputError, match=r"train\.jsonl\.gz: cannot be read .*one JSON object a line"):
            read()


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (os.mkfifo, "a named pipe"),  # opening it would block for ever
        (lambda path: os.symlink("/dev/zero", path), "a device"),
        (os.mkdir, "a folder"),
    ],
    ids=["pipe", "device", "folder"],
)
@pytest.mark.parametrize("name", ["train.jsonl.gz", "validation.jsonl.gz"])
def test_what_is_no_file_is_named(tmp_path: Path, make: Any, kind: str, name: str) -> None:
    cfg = local(tmp_path, "sst2")
    (tmp_path / "sst2" / name).unlink()
    make(tmp_path / "sst2" / name)
    with pytest.raises(InputError, match=rf"{name}: {kind}, not a file; it must hold one JSON object a line"):
        check(cfg)


def test_an_endless_line_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = local(tmp_path, "sst2")
    monkeypatch.setattr(sources, "MOST_LINE", 1000)
    monkeypatch.setattr(sources, "BLOCK", 300)
    row = b'{"sentence": "%s", "label": 0}\n'
    longest = row % (b"x" * (1000 - len(row % b"") + 1))  # 1000 bytes and the end of the line
    path = tmp_path / "sst2" / "train.jsonl.gz"
    path.write_bytes(gzip.compress(longest * 3))
    assert sources.train_rows(cfg) == len(load(cfg, "train")) == 3
    path.write_bytes(gzip.compress(longest + b"x" * 10_000))
    for read in (lambda: load(cfg, "train"), lambda: sources.train_rows(cfg)):
        with pytest.raises(InputError, match=r"train\.jsonl\.gz:2: a line of more than 1,000 bytes; expected one JSON"):
            read()


def test_an_archive_that_no_text_packs_to_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = local(tmp_path, "sst2")
    monkeypatch.setattr(sources, "SUSPECT_BYTES", 2**22)
    row = b'{"sentence": "x", "label": 0}\n'
    path = tmp_path / "sst2" / "train.jsonl.gz"
    path.write_bytes(gzip.compress(row * (2**21 // len(row))))  # valid and small
    assert sources.train_rows(cfg) == 2**21 // len(row)
    path.write_bytes(gzip.compress(row * (2**23 // len(row))))
    with pytest.raises(InputError, match=r"train\.jsonl\.gz: its [\d,]+ bytes unpack to more than 100 times as many"):
        sources.train_rows(cfg)


def test_a_file_beyond_the_bound_is_not_read(tmp_path: Path) -> None:
    cfg = local(tmp_path, "sst2")
    path = tmp_path / "sst2" / "train.jsonl"
    (tmp_path / "sst2" / "train.jsonl.gz").unlink()
    path.touch()
    os.truncate(path, sources.MOST_BYTES + 1)  # a sparse file takes no space
    with pytest.raises(InputError, match=r"train\.jsonl: more than 68,719,476,736 bytes of text"):
        check(cfg)


@given(st.binary(max_size=200).map(lambda data: data.replace(b"x", b"\n")), st.integers(1, 50))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_lines_are_those_of_the_file(tmp_path: Path, data: bytes, block: int) -> None:
    """Against Python's own, wherever a block ends."""
    path = tmp_path / "train.jsonl"
    path.write_bytes(data)
    with pytest.MonkeyPatch.context() as patch, path.open("rb") as file:
        patch.setattr(sources, "BLOCK", block)
        assert list(sources._text_lines(path)) == [line.removesuffix(b"\n") for line in file]


def test_an_empty_split_is_named(tmp_path: Path) -> None:
    cfg = local(tmp_path, "mnli", validation=[])
    for read in (lambda: check(cfg), lambda: load(cfg, "validation_matched")):
        with pytest.raises(InputError, match=r"validation_matched\.jsonl\.gz: empty"):
            read()


def test_check_names_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data=local needs data\.dir=DIR"):
        check(task_config("rte", "local"))
    with pytest.raises(InputError, match=r"data\.dir=.*nowhere: no such folder"):
        check(task_config("rte", "local", data__dir=str(tmp_path / "nowhere")))
    cfg = local(tmp_path, "mnli")
    (tmp_path / "mnli" / "validation_mismatched.jsonl.gz").unlink()
    with pytest.raises(InputError, match=r"validation_mismatched\.jsonl\.gz: no such file; it must hold one JSON"):
        check(cfg)
    cfg = local(tmp_path, "sst2", validation=[{"sentence": "x"}])
    with pytest.raises(InputError, match=r"validation\.jsonl\.gz:1: column 'label' is missing"):
        check(cfg)
    with pytest.raises(InputError, match=r"data\.sample_rows=0: the train split needs at least 1 row"):
        check(task_config("rte", data__sample_rows=0))
    with pytest.raises(InputError, match="unknown data source 'web'; valid: hub, local, sample"):
        check(task_config("rte", "web"))


ROW = st.dictionaries(
    st.text(max_size=5), st.one_of(st.none(), st.integers(), st.text(), st.floats(allow_nan=False)), max_size=4
)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(ROW, min_size=1, max_size=5), st.data())
def test_the_same_rows_in_other_bytes_are_the_same_data(tmp_path: Path, rows: list[Any], data: st.DataObject) -> None:
    """Other line ends, spacing, escapes, order of keys, blank lines, compression, a byte order mark."""
    cfg = local(tmp_path, "sst2", train=rows)
    path = tmp_path / "sst2" / "train.jsonl.gz"
    before, bytes_before = sources.fingerprint(cfg), sources.byte_fingerprint(cfg)
    assert sources.train_rows(cfg) == len(rows)
    end = data.draw(st.sampled_from(["\n", "\r\n", "\n\n", " \n"]))
    lines = [
        json.dumps(
            dict(reversed(row.items())),
            ensure_ascii=data.draw(st.booleans()),
            separators=data.draw(st.sampled_from([(",", ":"), (" ,  ", ":\t")])),
        )
        for row in rows
    ]
    mark = data.draw(st.sampled_from(["", "\ufeff"]))
    content = (mark + end.join(lines) + data.draw(st.sampled_from(["", end]))).encode("utf-8", "surrogatepass")
    path.unlink()
    plain = data.draw(st.booleans())
    path = path.with_suffix("") if plain else path
    path.write_bytes(content if plain else gzip.compress(content, compresslevel=1))
    try:
        assert sources.fingerprint(cfg) == before
        assert sources.byte_fingerprint(cfg) != bytes_before
        assert sources.train_rows(cfg) == len(rows)
    finally:
        path.unlink()


@pytest.mark.parametrize(
    "other",
    [
        [{"a": 2}, {"a": 1}],
        [{"a": 1}],
        [{"a": 1}, {"a": 2}, {"a": 2}],
        [{"a": 1}, {"a": "2"}],
        [{"a": 1}, {"b": 2}],
        [{"a": 1}, "{broken"],
        [{"a": 1}, "{broken2"],
    ],
)
def test_other_rows_are_other_data(tmp_path: Path, other: list[Any]) -> None:
    before = sources.fingerprint(local(tmp_path, "sst2", train=[{"a": 1}, {"a": 2}]))
    assert sources.fingerprint(local(tmp_path, "sst2", train=other)) != before
    assert sources.fingerprint(local(tmp_path, "sst2", train=[{"a": 1}, "{brokem"])) != before


def test_what_a_large_file_holds_is_parsed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "LARGE", 1)
    monkeypatch.setattr(sources, "_contents", {})
    rows = [{"sentence": f"kept {number}"} for number in range(5)]
    cfg = local(tmp_path, "sst2", train=rows)
    cfg.data.cache_dir = str(tmp_path / "cache")
    before = sources.fingerprint(cfg)
    parse = sources._parsed_content
    for damage in (None, b"", b"{}", b'{"rows": 5, "fingerprint": 7}', b'{"rows": true, "fingerprint": "x"}', b"[1]"):
        monkeypatch.setattr(sources, "_contents", {})
        kept = list((tmp_path / "cache" / "rows").glob("*.json"))
        assert len(kept) == 2  # of the train and the validation split
        if damage is None:
            monkeypatch.setattr(sources, "_parsed_content", None)  # it is not called
        else:
            monkeypatch.setattr(sources, "_parsed_content", parse)
            for path in kept:
                path.write_bytes(damage)
        assert sources.fingerprint(cfg) == before
        assert sources.train_rows(cfg) == 5
    monkeypatch.setattr(sources, "_contents", {})
    cfg.data.cache_dir = str(tmp_path / "sst2" / "train.jsonl.gz")  # no folder, so nothing can be kept
    assert sources.fingerprint(cfg) == before


def test_a_file_that_changed_is_read_again(tmp_path: Path) -> None:
    cfg = local(tmp_path, "sst2", train=[{"a": 1}])
    before = sources.fingerprint(cfg), sources.train_rows(cfg)
    write_jsonl(tmp_path / "sst2" / "train.jsonl.gz", [{"a": 1}, {"a": 2}])
    assert sources.train_rows(cfg) == 2
    assert sources.fingerprint(cfg) != before[0]


def test_a_fingerprint_changes_with_what_it_stands_for(tmp_path: Path) -> None:
    cfg = local(tmp_path, "sst2")
    before = sources.fingerprint(cfg)
    assert before == sources.fingerprint(cfg)
    write_jsonl(tmp_path / "sst2" / "validation.jsonl.gz", [GOOD_ROWS["sst2"]] * 2)
    assert sources.fingerprint(cfg) != before
    assert sources.provenance(cfg, {"train": 1})["sha256"].keys() == {"train", "validation"}
    prints = {
        sources.fingerprint(config)
        for config in (
            cfg,
            task_config("sst2"),
            task_config("sst2", data__sample_seed=1),
            task_config("sst2", data__sample_rows=10),
            task_config("rte"),
            task_config("rte", "hub"),
            task_config("rte", "hub", task__revision="0" * 40),
        )
    }
    assert len(prints) == 7


# Bad rows left out (data.skip_invalid=true)


def test_bad_rows_of_a_file_are_left_out_and_the_others_keep_their_order(tmp_path: Path) -> None:
    good = [{"sentence": f"film {i}", "label": i % 2} for i in range(4)]
    lines = [good[0], "{broken", good[1], good[1] | {"label": 2}, "", {"text": "x"}, good[2], "[1]", good[3]]
    cfg = local(tmp_path, "sst2", train=lines)
    bad = sources.BadRows(True)
    assert load(cfg, "train", bad).to_list() == good
    path = tmp_path / "sst2" / "train.jsonl.gz"
    assert [problem.partition(": ")[0] for problem in bad.problems] == [f"{path}:{line}" for line in (2, 4, 6, 8)]
    assert sources.train_rows(cfg) == 8  # counted without looking into them


def test_bad_rows_of_the_hub_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    on_hub(monkeypatch, hub_rows([0, -1, 1, -1]))
    bad = sources.BadRows(True)
    rows = load(task_config("rte", "hub"), "validation", bad)
    assert rows["label"][:] == [0, 1]
    where = "nyu-mll/glue (rte) validation, row"
    assert bad.problems == [f"{where} {row}: label -1 is out of range, must be 0 to 1" for row in (1, 3)]


def test_rows_of_the_hub_are_checked_beyond_the_first_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = [0] * 2500
    labels[2345] = -1
    on_hub(monkeypatch, hub_rows(labels))
    with pytest.raises(InputError, match=r"train, row 2345: label -1 is out of range"):
        load(task_config("rte", "hub"), "train")


def test_a_row_of_the_hub_is_named_by_its_id(monkeypatch: pytest.MonkeyPatch) -> None:
    good = {name: value for name, value in GOOD_ROWS["squad"].items() if name != "answers"}
    answers = {"text": ["France"], "answer_start": [12]}
    rows = [good | {"answers": answers}, good | {"id": "2", "answers": answers | {"answer_start": [3]}}]
    on_hub(monkeypatch, Dataset.from_list(rows))
    with pytest.raises(InputError, match=r"^rajpurkar/squad train, row 1: id '2': the answer 'France' is not at its"):
        load(task_config("squad", "hub"), "train")
    bad = sources.BadRows(True)
    (row,) = load(task_config("squad", "hub"), "train", bad)
    assert (row["id"], row["answers"], len(bad.problems)) == ("1", answers, 1)


@pytest.mark.parametrize("lines", [["{", "{"], [{"sentence": "x", "label": 5}]])
def test_a_split_of_bad_rows_alone_is_refused_with_the_first_reason(tmp_path: Path, lines: list[Any]) -> None:
    cfg = local(tmp_path, "sst2", validation=lines)
    cfg.data.skip_invalid = True
    path = tmp_path / "sst2" / "validation.jsonl.gz"
    for read in (lambda: check(cfg), lambda: load(cfg, "validation", sources.BadRows(True))):
        with pytest.raises(InputError) as error:
            read()
        assert str(error.value).startswith(f"{path}: no good row ({path}:1: ")
        assert str(error.value).endswith("), the validation split of sst2 needs rows")
        assert "\n" not in str(error.value)


def test_the_check_looks_for_a_good_row_where_bad_ones_are_left_out(tmp_path: Path) -> None:
    cfg = local(tmp_path, "sst2", train=["{", GOOD_ROWS["sst2"]])
    with pytest.raises(InputError, match=r"train\.jsonl\.gz:1: not JSON"):
        check(cfg)
    cfg.data.skip_invalid = True
    check(cfg)


@pytest.mark.parametrize("task", ["squad", "xsum"])
def test_an_id_is_refused_the_second_time(tmp_path: Path, task: str) -> None:
    good = GOOD_ROWS[task]
    cfg = local(tmp_path, task, train=[good, good | {"id": "2"}, good])
    path = tmp_path / task / "train.jsonl.gz"
    expected = f"{path}:3: id '1': the id is also that of {path}:1"
    with pytest.raises(InputError) as error:
        load(cfg, "train")
    assert str(error.value).startswith(expected)
    bad = sources.BadRows(True)
    assert load(cfg, "train", bad)["id"][:] == ["1", "2"]
    assert bad.problems == [expected]


def test_an_id_of_a_bad_row_is_still_free(tmp_path: Path) -> None:
    good = GOOD_ROWS["squad"]
    cfg = local(tmp_path, "squad", train=[good | {"context": ""}, good])
    bad = sources.BadRows(True)
    assert load(cfg, "train", bad)["context"][:] == [good["context"]]
    assert len(bad.problems) == 1


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.one_of(st.integers(-2, 3), st.sampled_from(["{", '"x"', "[]", "null"])), min_size=1, max_size=30))
def test_good_and_bad_rows_are_all_the_rows(tmp_path: Path, rows: list[int | str]) -> None:
    lines = [{"sentence": str(i), "label": row} if isinstance(row, int) else row for i, row in enumerate(rows)]
    good = [line for line in lines if isinstance(line, dict) and line["label"] in (0, 1)]
    cfg = local(tmp_path, "sst2", train=lines)
    bad = sources.BadRows(True)
    if not good:
        with pytest.raises(InputError, match="no good row"):
            load(cfg, "train", bad)
        return
    assert load(cfg, "train", bad).to_list() == good
    assert len(bad.problems) == len(lines) - len(good)


# The hub, which no test reaches


def on_hub(monkeypatch: pytest.MonkeyPatch, answer: Dataset | Exception) -> list[tuple[Any, ...]]:
    calls: list[tuple[Any, ...]] = []

    def load_dataset(*args: Any, **options: Any) -> Dataset:
        calls.append((*args, options))
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # nobody looks for a connection
    return calls


def hub_rows(labels: list[int]) -> Dataset:
    names = ["entailment", "not_entailment"]
    features = Features({"sentence1": Value("string"), "sentence2": Value("string"), "label": ClassLabel(names=names)})
    columns: dict[str, list[Any]] = {name: ["x"] * len(labels) for name in ("sentence1", "sentence2")}
    return Dataset.from_dict(columns | {"label": labels}, features=features)


def test_the_hub_is_asked_for_the_pinned_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = on_hub(monkeypatch, hub_rows([0, 1]))
    cfg = task_config("rte", "hub")
    assert load(cfg, "validation")["label"] == [0, 1]
    assert calls == [("nyu-mll/glue", "rte", {"split": "validation", "revision": cfg.task.revision})]
    assert sources.train_rows(cfg) == 2490
    assert sources.provenance(cfg, {"train": 2})["revision"] == cfg.task.revision


def test_hidden_test_labels_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    on_hub(monkeypatch, hub_rows([0, -1]))
    with pytest.raises(InputError, match=r"nyu-mll/glue \(rte\) validation, row 1: label -1 is out of range"):
        load(task_config("rte", "hub"), "validation")


def test_a_hub_data_set_that_is_empty_or_another_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    on_hub(monkeypatch, hub_rows([]))
    with pytest.raises(InputError, match="empty"):
        load(task_config("rte", "hub"), "train")
    on_hub(monkeypatch, hub_rows([0]))
    with pytest.raises(InputError, match="column 'question' is missing"):
        load(task_config("qnli", "hub"), "train")


def test_without_a_network_the_way_out_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    on_hub(monkeypatch, ConnectionError("Couldn't reach 'nyu-mll/glue' on the Hub\nsecond line"))
    with pytest.raises(InputError) as error:
        load(task_config("rte", "hub"), "train")
    for part in ("nyu-mll/glue", "data=local data.dir=DIR", "data=sample", "HF_HOME"):
        assert part in str(error.value)
    assert "\n" not in str(error.value)
    on_hub(monkeypatch, OSError(28, "No space left on device"))
    with pytest.raises(InputError, match="cannot store nyu-mll/glue below HF_HOME"):
        load(task_config("rte", "hub"), "train")


# Families


@pytest.mark.parametrize("task", TASKS)
def test_every_task_has_its_family(task: str) -> None:
    cfg = task_config(task)
    family = load_family(cfg)
    assert type(family).__module__ == f"adalora_repro.tasks.{cfg.task.family}"
    assert family.primary_metric == cfg.task.primary_metric
    assert family.architecture == ("encoder-decoder" if cfg.task.family == "summarization" else "encoder")
    assert family.has_ids == (cfg.task.family != "glue")
    assert set(family.features()) == set(family.columns)


@pytest.mark.parametrize("family", ["no_such_family", "glue.Task", "../glue", "", "sources", "squad_scores", "base"])
def test_a_family_that_is_none_says_so(family: str) -> None:
    cfg = task_config("rte", task__family=family)
    with pytest.raises(InputError) as error:
        load_family(cfg)
    assert str(error.value).startswith(f"unknown task.family of 'rte' '{family}'")
    assert "; valid: glue, squad, summarization" in str(error.value)


def test_what_a_family_must_implement_is_what_the_page_on_own_data_lists() -> None:
    text = (ROOT / "docs" / "own-data.md").read_text(encoding="utf-8").partition("## A task family")[2]
    listed = set(re.findall(r"`(\w+)(?:\([\w, ]*\))?`", text.partition("\n## ")[0]))
    families = [type(load_family(task_config(task))) for task in ("rte", "squad", "xsum")]
    shared = {name for name in dir(BaseTask) if not name.startswith("_")} | {"architecture", "code_version"}
    in_all = set.intersection(*(set(vars(family)) & shared for family in families))
    assert in_all <= listed


@pytest.mark.parametrize("task", TASKS)
def test_a_setting_of_another_family_is_refused(task: str) -> None:
    """Each of them is of some family, null in the others' files, and refused there."""
    settings = {name: {each.name for each in fields(module.Options)} for name, module in families().items()}
    own = settings.pop(task_config(task).task.family)
    for family, others in settings.items():
        for name in others:
            assert name not in own
            assert task_config(task).task[name] is None
            value = {"early_stopping": False}.get(name, 0)  # not null, though it is nothing
            with pytest.raises(InputError) as error:
                load_family(task_config(task, **{f"task__{name}": value}))
            assert str(error.value).startswith(f"task.{name} is a setting of family {family}, not of {task}")


@pytest.mark.parametrize(
    ("task", "columns", "wanted"),
    [("sst2", 0, "1 or 2"), ("rte", 3, "1 or 2"), ("squad", 1, "2"), ("squad", 3, "2"), ("xsum", 2, "1")],
)
def test_a_family_reads_so_many_text_columns(task: str, columns: int, wanted: str) -> None:
    with pytest.raises(InputError) as error:
        load_family(task_config(task, task__text_columns=["a", "b", "c"][:columns]))
    assert str(error.value) == f"task.text_columns: {task} reads {wanted}, not {columns}"


def test_checks_and_families_import_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from task_configs import TASKS, task_config\n"
        "before = {name for name in ('torch', 'datasets', 'transformers', 'numpy') if name in sys.modules}\n"
        "from adalora_repro.tasks import load_family, sources\n"
        "for task in TASKS: load_family(task_config(task))\n"
        "print(before, [m for m in sys.modules])"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "tests")))}
    modules = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True, encoding="utf-8"
    ).stdout
    assert modules.startswith("set() ")
    assert "adalora_repro.tasks.squad'" in modules
    heavy = ("torch", "datasets", "transformers", "numpy", "scipy", "sklearn")
    assert [name for name in heavy if f"'{name}'" in modules] == []


@needs_real_data
@pytest.mark.parametrize("task", TASKS)
def test_real_files_pass_the_check(task: str) -> None:
    cfg = task_config(task, "local", data__dir=str(REAL_DATA))
    check(cfg)
    assert sources.train_rows(cfg) > 1000
