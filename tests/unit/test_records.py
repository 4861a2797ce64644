"""records.py: what is written is read back; what is not a record is refused by name; nothing is ever half written."""

import copy
import errno
import gzip
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_records import make, save
from hypothesis import given, settings
from hypothesis import strategies as st

from adalora_repro.cli import report
from adalora_repro.errors import EXIT_OK
from adalora_repro.records import validation
from adalora_repro.records.run_record import (
    RECORD_NAME,
    RecordError,
    figures_to_choose_by,
    read,
    read_all,
    validate,
    write,
    write_files,
)


@given(st.floats(-1, 1), st.integers(0, 2**31), st.floats(1e-7, 1.0))
def test_round_trip_keeps_every_bit(score: float, seed: int, lr: float) -> None:
    record = make(score, seed=seed, lr=lr)
    assert validate(json.loads(json.dumps(record.to_json())), "here") == record


def changed(path: str, value: Any) -> dict[str, Any]:
    """A valid record's JSON with one value replaced (``...`` deletes it)."""
    values = copy.deepcopy(make().to_json())
    *parents, last = path.split(">" if ">" in path else ".")
    at = values
    for name in parents:
        at = at[name]
    if value is ...:
        del at[last]
    else:
        at[last] = value
    return values


REFUSED = [
    ("schema_version", 2, "schema_version 2"),
    ("schema_version", True, "schema_version True"),
    ("schema_version", ..., "schema_version None"),
    ("status", "done", "status is 'done', not one of running, ok"),
    ("surprise", 1, "unknown field 'surprise'"),
    ("error", 3, "error is 3, not text"),
    ("key", ..., "key is missing"),
    ("key.seed", ..., "key.seed is missing"),
    ("key.seed", True, "key.seed is True"),
    ("key.lr", float("nan"), "key.lr is nan"),
    ("key.lr", 0, "key.lr is 0, not a positive number"),
    ("key.max_examples", 0, "key.max_examples is 0"),
    ("primary_metric", "f1", "final has no metric 'f1'"),
    ("final", None, "without a final evaluation"),
    ("final", {"metrics": {"x": 1.0}}, "final.step is missing"),
    ("final.metrics.matthews_correlation", "0.5", "final.metrics.matthews_correlation is '0.5'"),
    ("final.metrics.matthews_correlation", 10**400, "final.metrics.matthews_correlation is 1000"),
    ("best", {"metrics": {}, "step": 5}, "best has no metric 'matthews_correlation'"),
    ("final.holdout", [0.5], "final.holdout is [0.5], not an object"),
    ("final.holdout", {"f1": 0.5}, "final.holdout has no metric 'matthews_correlation'"),
    (
        "best",
        {"metrics": {"matthews_correlation": 0.5}, "holdout": {"matthews_correlation": 0.5}, "step": 5},
        "one of final and best has a held-out split",
    ),
    ("degenerate", None, "degenerate is None, not true or false"),
    ("params.method", -1, "params.method is -1, not a whole number"),
    ("params.method", 1.5, "params.method is 1.5"),
    ("rank_pattern", {"encoder.0.q": True}, "rank_pattern.encoder.0.q is True"),
    ("budget", {"b_0": -2}, "budget.b_0 is -2"),
    ("progress", {"updated": "now"}, "progress.updated is 'now'"),
    ("time", {"train_s": -1}, "time.train_s is -1, not a number of 0 or more"),
    ("progress", {"step": 2**54}, "progress.step is 18014398509481984, not a whole number of 0 or more, up to 2^53"),
    ("memory", {"peak": 1e300}, "memory.peak is 1e+300, not a number of 0 or more, up to 2^53"),
    ("memory", {"peak": []}, "memory.peak is []"),
    ("environment", {"git": {"commit": 3}}, "environment.git.commit is 3"),
    ("data", {"rows": [1]}, "data.rows is [1]"),
    ("settings>task.validation._m", "../../x", "settings.task.validation._m is '../../x', not a file name"),
    ("settings>method.layers", ["²"], "settings.method.layers[0] is '²'"),
]


@pytest.mark.parametrize(("path", "value", "why"), REFUSED)
def test_refuses_and_says_why(path: str, value: Any, why: str) -> None:
    with pytest.raises(RecordError) as error:
        validate(changed(path, value), "some/file")
    assert str(error.value).startswith("some/file: ")
    assert why in str(error.value)


def test_a_held_out_split_is_what_a_run_is_chosen_by(tmp_path: Path) -> None:
    record = make(0.5, 0.7, degenerate=True)
    record.best = dict(record.final)
    again = read(write(record, tmp_path))
    assert again == record
    assert figures_to_choose_by(again.final) == {"matthews_correlation": 0.7}
    old = make(0.5)
    assert figures_to_choose_by(old.final) == old.final["metrics"]
    values = old.to_json()
    del values["degenerate"]  # as in records made before the field existed
    assert validate(values, "old").degenerate is False


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 200_000, b'{"loss": 1}', b'{"schema_version": 1}'),
        b'{"schema_version": 1, "data": ' + b"[" * 700 + b"]" * 700 + b"}",
    ],
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


def test_an_unreadable_record_is_never_written(tmp_path: Path) -> None:
    good = write(make(), tmp_path).read_bytes()
    with pytest.raises(RecordError):
        write(make(float("nan")), tmp_path)
    assert (tmp_path / RECORD_NAME).read_bytes() == good
    assert os.listdir(tmp_path) == [RECORD_NAME]


@pytest.mark.parametrize("step", ["fsync", "replace"])
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


# What cannot be reached is named, never left out in silence


def damaged(record: Path) -> None:
    record.write_text("not JSON", encoding="utf-8")


def another_folder(record: Path) -> None:
    record.write_text(record.read_text(encoding="utf-8").replace('"rte"', '"../../../cola"'), encoding="utf-8")


def renamed_run(record: Path) -> Path:
    return record.parent.rename(record.parent.with_name("copy")) / RECORD_NAME


def broken_link(record: Path) -> None:
    record.unlink()
    record.symlink_to("nowhere")


def folder_in_its_place(record: Path) -> None:
    record.unlink()
    record.mkdir()


def pipe(record: Path) -> None:
    record.unlink()
    os.mkfifo(record)


def device(record: Path) -> None:
    record.unlink()
    record.symlink_to("/dev/zero")


def huge(record: Path) -> None:
    with record.open("ab") as file:
        file.truncate(1 << 40)


def linked_run(record: Path) -> Path:
    folder = record.parent
    folder.rename(folder.parents[5] / "elsewhere")
    folder.symlink_to(folder.parents[5] / "elsewhere")
    return folder


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (damaged, "Expecting value"),
        (another_folder, "'../../../cola' cannot be a folder name"),
        (renamed_run, "belongs in"),
        (broken_link, "a broken link"),
        (folder_in_its_place, "a folder"),
        (pipe, "a named pipe"),
        (device, "a device"),
        (huge, "more than the"),
        (linked_run, "a link, which is not followed"),
    ],
)
def test_a_record_that_does_not_count_is_named_and_the_others_do(
    tmp_path: Path, spoil: Callable[[Path], Path | None], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "results"
    good = save(results, make(0.25))
    record = save(results, make(0.75, task="rte", seed=1))
    named = spoil(record) or record
    read_again, refused = read_all(results)
    assert [path for path, _ in read_again] == [good]
    (line,) = refused
    assert line.startswith(f"{named}: ")
    assert why in line
    assert report.main(["table1", "--results", str(results)]) == EXIT_OK  # as every report
    assert f"adalora-report: skipped: {line}\n" in capsys.readouterr().err


def test_a_folder_that_cannot_be_listed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same for root, whom permissions do not stop."""
    good, bad = save(tmp_path, make()), save(tmp_path, make(task="rte")).parents[2]
    scandir = os.scandir

    def closed(path: str) -> Any:
        if Path(path) == bad:
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)
    read_again, refused = read_all(tmp_path)
    assert [path for path, _ in read_again] == [good]
    assert refused == [f"{bad}: Permission denied; records in it are not counted"]


def test_results_may_be_links_and_runs_may_hold_links(tmp_path: Path) -> None:
    path = save(tmp_path / "disk", make())
    (path.parent / "notes").symlink_to("nowhere")
    (path.parent / "best").symlink_to(tmp_path)
    (path.parents[1] / ".#lock").symlink_to("somebody@somewhere")  # an editor's
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "runs").symlink_to(tmp_path / "disk" / "runs")
    read_again, refused = read_all(tmp_path / "results")
    assert (len(read_again), refused) == (1, [])
    (tmp_path / "disk").rename(tmp_path / "gone")
    assert read_all(tmp_path / "results")[1] == [f"{tmp_path}/results/runs: a broken link"]


# JSON by the letter


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"a": 1, "b": {"c": 1, "c": 1}}', "an object has the key 'c' twice"),
        ('{"a": NaN}', "'NaN' is not a finite number"),
        ("[-Infinity]", "'-Infinity' is not a finite number"),
        ("[1e999]", "'1e999' is not a finite number"),
        (f"[{'9' * 400}]", "is not a finite number"),
        (f"[{'9' * 5000}]", "5000 digits"),
        ("[" * 700 + "]" * 700, "more than 32 levels"),
        ("[" * 100_000 + "]" * 100_000, "more than 32 levels"),
    ],
)
def test_json_that_no_report_could_stand_is_refused(tmp_path: Path, text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        validation.parse(text)
    path = save(tmp_path, make())
    path.write_text(
        path.read_text(encoding="utf-8").replace('"settings": {', f'"settings": {{"x": {text},', 1), encoding="utf-8"
    )
    assert len(read_all(tmp_path)[1]) == 1
    assert why in read_all(tmp_path)[1][0]


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**300), 10**300)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@settings(max_examples=50)
@given(JSON)
def test_what_is_dumped_is_parsed_as_it_was(value: Any) -> None:
    assert validation.parse(validation.dump(value)) == value
    assert validation.dump(value).endswith(b"\n")
