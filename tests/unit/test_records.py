"""records.py: what is written is read back; what is not a record is refused by name; nothing is ever half written."""

from __future__ import annotations

import copy
import errno
import gzip
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from fake_records import make, save
from hypothesis import given
from hypothesis import strategies as st

from adalora_repro.records import (
    RECORD_NAME,
    RecordError,
    RunRecord,
    find,
    read,
    read_all,
    run_folder,
    validate,
    write,
    write_atomic,
    write_files,
)


def test_round_trip(tmp_path: Path) -> None:
    record = make(0.7123456789012345, rank_pattern={"layer.0.q": 3}, budget={"b_0": 288, "b_T": 144, "n": 72})
    assert read(write(record, tmp_path)) == record


@given(st.floats(-1, 1), st.integers(0, 2**31), st.floats(1e-7, 1.0))
def test_round_trip_keeps_every_bit(score: float, seed: int, lr: float) -> None:
    record = make(score, seed=seed, lr=lr)
    assert validate(json.loads(json.dumps(record.to_json())), "here") == record


def test_identity_comes_first_and_measured_leaves_clocks_out() -> None:
    record = make(time={"train_s": 1.0}, progress={"step": 3})
    assert list(record.to_json())[:4] == ["schema_version", "status", "error", "key"]
    other = make(time={"train_s": 2.0}, progress={"step": 4}, environment={"host": "b"}, memory={"peak": 1})
    assert record.measured() == other.measured() != make(0.51).measured()


def changed(path: str, value: Any) -> dict[str, Any]:
    """A valid record's JSON with one value replaced (``...`` deletes it)."""
    values = copy.deepcopy(make().to_json())
    *parents, last = path.split(".")
    at = values
    for name in parents:
        at = at[name]
    if value is ...:
        del at[last]
    else:
        at[last] = value
    return values


@pytest.mark.parametrize(
    ("path", "value", "why"),
    [
        ("schema_version", 2, "schema_version 2"),
        ("schema_version", True, "schema_version True"),
        ("schema_version", ..., "schema_version None"),
        ("status", "done", "status 'done'"),
        ("status", ["ok"], "status"),
        ("surprise", 1, "unknown field 'surprise'"),
        ("error", 3, "error is not text"),
        ("key", ..., "no key"),
        ("key.seed", ..., "key.seed is missing"),
        ("key.seed", True, "key.seed is True"),
        ("key.seed", "0", "key.seed is '0'"),
        ("key.lr", float("nan"), "key.lr is nan"),
        ("key.max_examples", False, "key.max_examples is False"),
        ("primary_metric", None, "no primary_metric"),
        ("primary_metric", "f1", "final has no metric 'f1'"),
        ("final", None, "without a final evaluation"),
        ("final", {"metrics": {"x": 1.0}}, "final has no metrics and step"),
        ("final.metrics.matthews_correlation", float("nan"), "final.metrics.matthews_correlation is nan"),
        ("final.metrics.matthews_correlation", float("inf"), "is inf"),
        ("final.metrics.matthews_correlation", True, "is True"),
        ("final.metrics.matthews_correlation", "0.5", "is '0.5'"),
        ("final.metrics.matthews_correlation", 10**400, "final.metrics.matthews_correlation"),
        ("best", {"metrics": {}, "step": 5}, "best has no metric 'matthews_correlation'"),
        ("params.method", True, "params.method is True"),
        ("params.method", -1, "params.method is -1"),
        ("params.method", 1.5, "params.method is 1.5"),
        ("params.method", 10**400, "params.method is 1000"),
        ("params", [], "params is not an object"),
        ("rank_pattern", [1], "rank_pattern is not an object"),
    ],
)
def test_refuses_and_says_why(path: str, value: Any, why: str) -> None:
    with pytest.raises(RecordError) as error:
        validate(changed(path, value), "some/file")
    assert str(error.value).startswith("some/file: ")
    assert why in str(error.value)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 200_000, b'{"loss": 1}', b'{"schema_version": 1}']
)
def test_damaged_and_foreign_files_are_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / RECORD_NAME
    path.write_bytes(content)
    with pytest.raises(RecordError, match=r"metrics\.json: "):
        read(path)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists, max_leaves=5))
def test_no_json_value_gets_past_validation_as_something_else(value: Any) -> None:
    """Whatever stands where the final evaluation belongs: refused, and by no other exception."""
    with pytest.raises(RecordError):
        validate(changed("final", value), "file")


def test_absent_file_is_not_a_damaged_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read(tmp_path / RECORD_NAME)


def test_an_unreadable_record_is_never_written(tmp_path: Path) -> None:
    good = write(make(), tmp_path).read_bytes()
    with pytest.raises(RecordError):
        write(make(float("nan")), tmp_path)
    assert (tmp_path / RECORD_NAME).read_bytes() == good
    assert os.listdir(tmp_path) == [RECORD_NAME]


@pytest.mark.parametrize("step", ["fsync", "replace", "chmod"])
def test_a_full_disk_leaves_the_old_record_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    old = make(0.1)
    write(old, tmp_path)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, step, full)
        with pytest.raises(OSError, match="No space left"):
            write(make(0.2), tmp_path)
    assert read(tmp_path / RECORD_NAME) == old
    assert os.listdir(tmp_path) == [RECORD_NAME]


def test_readers_see_the_old_or_the_new_file_until_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")
    seen = []
    replace = os.replace

    def spy(source: str, target: Path) -> None:
        seen.append((path.read_bytes(), Path(source).read_bytes(), Path(source).parent))
        replace(source, target)

    monkeypatch.setattr(os, "replace", spy)
    write_atomic(path, b"new")
    assert seen == [(b"old", b"new", tmp_path)]
    assert path.read_bytes() == b"new"


# What lies beside a record

FILES = {
    "predictions.validation.jsonl.gz": [{"label": 1, "prediction": 0}, {"label": 0, "prediction": 0.25}],
    "predictions.json": {"id-1": "an answer", "id-2": "…"},
}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_files_are_rows_or_one_value_and_readable_as_such(tmp_path: Path) -> None:
    write_files(tmp_path / "final", FILES)
    assert sorted(contents(tmp_path / "final")) == sorted(FILES)
    with gzip.open(tmp_path / "final" / "predictions.validation.jsonl.gz", "rt", encoding="utf-8") as file:
        assert [json.loads(line) for line in file] == FILES["predictions.validation.jsonl.gz"]
    assert json.loads((tmp_path / "final" / "predictions.json").read_bytes()) == FILES["predictions.json"]
    write_files(tmp_path / "none", {"rows.jsonl.gz": []})
    assert gzip.decompress((tmp_path / "none" / "rows.jsonl.gz").read_bytes()) == b""


def test_the_same_files_are_the_same_bytes_at_any_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, now in (("a", 1.0), ("b", 2_000_000_000.0)):
        with monkeypatch.context() as patch:
            patch.setattr(time, "time", lambda now=now: now)
            write_files(tmp_path / name, FILES)
    write_files(tmp_path / "b", FILES)  # over what is there
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert contents(tmp_path / "a")["predictions.validation.jsonl.gz"][4:8] == bytes(4)  # gzip's time stamp


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_leaves_every_file_old_or_new_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    old = {name: [{"x": 0}] for name in ("a.jsonl.gz", "b.json")}
    new = {name: [{"x": 1}] for name in old}
    for name, files in (("folder", old), ("old", old), ("new", new)):
        write_files(tmp_path / name, files)
    before, after = contents(tmp_path / "old"), contents(tmp_path / "new")
    original, calls = getattr(os, step), []

    def full_the_second_time(*args: Any) -> Any:
        calls.append(args)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(*args)

    with monkeypatch.context() as patch:
        patch.setattr(os, step, full_the_second_time)
        with pytest.raises(OSError, match="No space left"):
            write_files(tmp_path / "folder", new)
    assert contents(tmp_path / "folder") == {"a.jsonl.gz": after["a.jsonl.gz"], "b.json": before["b.json"]}


@pytest.mark.parametrize("name", ["a.json", "a.jsonl.gz"])
def test_figures_that_no_json_has_are_not_written(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_files(tmp_path / "final", {name: [{"score": float("nan")}]})
    assert contents(tmp_path / "final") == {}


def test_files_beside_a_record_are_no_records(tmp_path: Path) -> None:
    path = save(tmp_path, make())
    write_files(path.parent / "final", FILES)
    assert [where for where, _ in read_all(tmp_path)[0]] == [path]
    assert read_all(tmp_path)[1] == []


def test_a_copied_or_renamed_run_is_not_counted(tmp_path: Path) -> None:
    path = save(tmp_path, make())
    twin = path.parent.with_name("paper-local-lr0.001-seed1-copy")
    shutil.copytree(path.parent, twin)
    found, refused = read_all(tmp_path)
    assert [where for where, _ in found] == [path]
    assert len(refused) == 1
    assert str(twin / RECORD_NAME) in refused[0]


def test_read_all_skips_what_is_damaged_and_keeps_the_rest(tmp_path: Path) -> None:
    good = {save(tmp_path, make(seed=seed)) for seed in range(3)}
    bad = tmp_path / "runs" / "other" / RECORD_NAME
    bad.parent.mkdir()
    bad.write_text("not JSON", encoding="utf-8")
    found, refused = read_all(tmp_path)
    assert {path for path, _ in found} == good
    assert len(refused) == 1
    assert str(bad) in refused[0]


def test_find_is_sorted_and_empty_without_runs(tmp_path: Path) -> None:
    assert list(find(tmp_path)) == []
    for seed in (10, 2, 1):
        save(tmp_path, make(seed=seed))
    paths = list(find(tmp_path))
    assert len(paths) == 3
    assert paths == sorted(paths)


def test_folder_names_what_varies(tmp_path: Path) -> None:
    key = make(lr=5e-4, seed=7, hash="abc").key
    assert run_folder(tmp_path, key) == tmp_path / "runs/minilm/cola/lora/0.3M/paper-local-lr0.0005-seed7-abc"


@pytest.mark.parametrize("name", ["backbone", "task", "method", "budget"])
@pytest.mark.parametrize("value", ["..", "../x", "a/b", "a\\b", "", ".hidden", "a\0b", "/etc"])
def test_no_key_leaves_the_results_folder(tmp_path: Path, name: str, value: str) -> None:
    key = make().key | {name: value}
    with pytest.raises(RecordError, match="cannot be a folder name"):
        run_folder(tmp_path, key)


def test_a_record_whose_key_leaves_the_results_folder_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path, make())
    values = json.loads(path.read_text(encoding="utf-8"))
    values["key"]["task"] = "../../../cola"
    path.write_text(json.dumps(values), encoding="utf-8")
    assert read_all(tmp_path) == ([], [f"{path}: '../../../cola' cannot be a folder name"])


def test_defaults_are_a_running_record() -> None:
    record = RunRecord(key=make().key, primary_metric="accuracy")
    assert validate(record.to_json(), "x").status == "running"
