"""records.py: what is written is read back; what is not a record is refused by name; nothing is ever half written."""

from __future__ import annotations

import ast
import copy
import errno
import gzip
import json
import os
import shutil
import stat
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
from adalora_repro.records import lock, validation
from adalora_repro.records.run_record import (
    RECORD_NAME,
    RecordError,
    RunRecord,
    figures_to_choose_by,
    find,
    read,
    read_all,
    run_folder,
    validate,
    write,
    write_atomic,
    write_files,
)

ROOT = Path(report.__file__).parents[2]


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
    *parents, last = path.split(">" if ">" in path else ".")
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
        ("status", "done", "status is 'done', not one of running, ok"),
        ("status", ["ok"], "status"),
        ("surprise", 1, "unknown field 'surprise'"),
        ("error", 3, "error is 3, not text"),
        ("key", ..., "key is missing"),
        ("key.seed", ..., "key.seed is missing"),
        ("key.seed", True, "key.seed is True"),
        ("key.seed", "0", "key.seed is '0'"),
        ("key.lr", float("nan"), "key.lr is nan"),
        ("key.max_examples", False, "key.max_examples is False"),
        ("primary_metric", None, "primary_metric is None, not text"),
        ("primary_metric", "f1", "final has no metric 'f1'"),
        ("final", None, "without a final evaluation"),
        ("final", {"metrics": {"x": 1.0}}, "final.step is missing"),
        ("final.metrics.matthews_correlation", float("nan"), "final.metrics.matthews_correlation is nan"),
        ("final.metrics.matthews_correlation", float("inf"), "is inf"),
        ("final.metrics.matthews_correlation", True, "is True"),
        ("final.metrics.matthews_correlation", "0.5", "is '0.5'"),
        ("final.metrics.matthews_correlation", 10**400, "final.metrics.matthews_correlation"),
        ("best", {"metrics": {}, "step": 5}, "best has no metric 'matthews_correlation'"),
        ("final.holdout", None, "final.holdout is None, not an object"),
        ("final.holdout", [0.5], "final.holdout is [0.5], not an object"),
        ("final.holdout", {"matthews_correlation": float("nan")}, "final.holdout.matthews_correlation is nan"),
        ("final.holdout", {"matthews_correlation": True}, "final.holdout.matthews_correlation is True"),
        ("final.holdout", {"f1": 0.5}, "final.holdout has no metric 'matthews_correlation'"),
        (
            "best",
            {"metrics": {"matthews_correlation": 0.5}, "holdout": {"matthews_correlation": 0.5}, "step": 5},
            "one of final and best has a held-out split",
        ),
        ("degenerate", 1, "degenerate is 1, not true or false"),
        ("degenerate", None, "degenerate is None, not true or false"),
        ("params.method", True, "params.method is True"),
        ("params.method", -1, "params.method is -1"),
        ("params.method", 1.5, "params.method is 1.5"),
        ("params.method", 10**400, "params.method is 1000"),
        ("params", [], "params is [], not an object"),
        ("rank_pattern", [1], "rank_pattern is [1], not an object"),
        ("rank_pattern", {"encoder.0.q": True}, "rank_pattern.encoder.0.q is True"),
        ("rank_pattern", {"encoder.0.q": -1}, "rank_pattern.encoder.0.q is -1"),
        ("rank_pattern", {"encoder.0.q": float("nan")}, "rank_pattern.encoder.0.q is nan"),
        ("rank_pattern", {"encoder.0.q": 10**400}, "rank_pattern.encoder.0.q is 1000"),
        ("key.lr", 0, "key.lr is 0"),
        ("key.lr", -1e-3, "key.lr is -0.001"),
        ("key.lr", 10**400, "key.lr is 1000"),
        ("key.seed", -1, "key.seed is -1"),
        ("key.total_steps", -5, "key.total_steps is -5"),
        ("key.max_examples", 0, "key.max_examples is 0"),
        ("final.step", -1, "final.step is -1"),
        ("final.step", 2.5, "final.step is 2.5"),
        ("final.holdout", {"accuracy": "x"}, "final.holdout.accuracy is 'x'"),
        ("budget", {"b_0": -2}, "budget.b_0 is -2"),
        ("progress", {"step": -1}, "progress.step is -1"),
        ("progress", {"updated": "now"}, "progress.updated is 'now'"),
        ("time", {"s_per_step": "slow"}, "time.s_per_step is 'slow'"),
        ("time", {"train_s": -1}, "time.train_s is -1"),
        ("memory", {"peak": []}, "memory.peak is []"),
        ("environment", {"threads": "two"}, "environment.threads is 'two'"),
        ("environment", {"versions": {"torch": 2}}, "environment.versions.torch is 2"),
        ("environment", {"git": {"commit": 3}}, "environment.git.commit is 3"),
        ("data", {"rows": [1]}, "data.rows is [1]"),
        ("data", {"skipped": {"train": "3"}}, "data.skipped.train is '3'"),
        ("settings>task.family", ["glue"], "settings.task.family is ['glue']"),
        ("settings>task.validation._m", "../../x", "settings.task.validation._m is '../../x'"),
        ("settings>method.layers", ["²"], "settings.method.layers[0] is '²'"),
        ("settings>method.gamma", "0.1", "settings.method.gamma is '0.1'"),
    ],
)
def test_refuses_and_says_why(path: str, value: Any, why: str) -> None:
    with pytest.raises(RecordError) as error:
        validate(changed(path, value), "some/file")
    assert str(error.value).startswith("some/file: ")
    assert why in str(error.value)


def test_a_held_out_split_is_what_a_run_is_chosen_by(tmp_path: Path) -> None:
    record = make(0.5, degenerate=True)
    assert record.final is not None
    record.final["holdout"] = {"matthews_correlation": 0.7}
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


def test_absent_file_is_not_a_damaged_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read(tmp_path / RECORD_NAME)


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


# What cannot be reached is named, never left out in silence


Place = Callable[[Path, Path], Path]  # (a finished run's folder, its record) -> what is to be named


def broken_link(folder: Path, record: Path) -> Path:
    record.unlink()
    record.symlink_to("nowhere")
    return record


def folder_in_its_place(folder: Path, record: Path) -> Path:
    record.unlink()
    record.mkdir()
    return record


def pipe(folder: Path, record: Path) -> Path:
    record.unlink()
    os.mkfifo(record)
    return record


def device(folder: Path, record: Path) -> Path:
    record.unlink()
    record.symlink_to("/dev/zero")
    return record


def huge(folder: Path, record: Path) -> Path:
    with record.open("ab") as file:
        file.truncate(1 << 40)
    return record


def linked_run(folder: Path, record: Path) -> Path:
    folder.rename(folder.parents[5] / "elsewhere")
    folder.symlink_to(folder.parents[5] / "elsewhere")
    return folder


def linked_task(folder: Path, record: Path) -> Path:
    task = folder.parents[2]
    task.rename(task.parents[2] / "elsewhere")
    task.symlink_to(task.parents[2] / "elsewhere")
    return task


def run_linked_to_nothing(folder: Path, record: Path) -> Path:
    shutil.rmtree(folder)
    folder.symlink_to("nowhere")
    return folder


def linked_in_a_circle(folder: Path, record: Path) -> Path:
    record.unlink()
    record.symlink_to(record)
    return record


@pytest.mark.parametrize(
    "spoil",
    [
        *(broken_link, folder_in_its_place, pipe, device, huge, linked_run, linked_task, run_linked_to_nothing),
        linked_in_a_circle,
    ],
)
def test_a_record_that_cannot_be_reached_is_named(
    tmp_path: Path, spoil: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "results"
    good = save(results, make(0.25))
    record = save(results, make(0.75, task="rte", seed=1))
    named = spoil(record.parent, record)
    read_again, refused = read_all(results)
    assert [path for path, _ in read_again] == [good]
    (line,) = refused
    assert line.startswith(f"{named}: ")
    assert report.main(["table1", "--results", str(results)]) == EXIT_OK  # as every report
    assert f"adalora-report: skipped: {line}\n" in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() == 0, reason="root may enter any folder")
def test_a_folder_without_permission_is_named(tmp_path: Path) -> None:
    closed = save(tmp_path, make()).parents[2]
    closed.chmod(0)
    try:
        assert read_all(tmp_path) == ([], [f"{closed}: Permission denied; records in it are not counted"])
    finally:
        closed.chmod(0o700)


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


def test_folders_without_end_are_named(tmp_path: Path) -> None:
    deep = tmp_path / "runs" / Path(*"d" * 200)
    deep.mkdir(parents=True)
    assert len(read_all(tmp_path)[1]) == 1


# JSON by the letter


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('{"a": 1, "b": {"c": 1, "c": 1}}', "an object has the key 'c' twice"),
        ('{"a": NaN}', "'NaN' is not a finite number"),
        ("[-Infinity]", "'-Infinity' is not a finite number"),
        ("[1e999]", "'1e999' is not a finite number"),
        (f"[{'9' * 400}]", "a number of 400 digits"),
        (f"[{'9' * 5000}]", "a number of 5,000 digits"),
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


def test_json_is_written_without_nan_everywhere() -> None:
    """Python's own default is to write NaN and Infinity, which no other reader of JSON takes."""
    calls = []
    for path in [
        path for name in ("adalora_repro", "hydra_plugins", "benchmarks") for path in (ROOT / name).rglob("*.py")
    ]:
        text = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(text)) if "json" in text else ():
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("json.dump", "json.dumps", "dumps"):
                words = {word.arg: ast.unparse(word.value) for word in node.keywords}
                calls.append((f"{path}:{node.lineno}", words.get("allow_nan") == "False"))
    assert len(calls) > 5
    assert [where for where, strict in calls if not strict] == []


# Who may read and write


@pytest.mark.parametrize("mask", [0o002, 0o077])
def test_files_follow_the_umask(tmp_path: Path, mask: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = os.umask(mask)
    try:
        path = save(tmp_path / "results", make())
        write_files(path.parent / "final", FILES)
        write_atomic(path, path.read_bytes())  # over what is there
        holder = lock.Lock(path.parent)
        holder.take(print)
        assert report.main(["table1", "--results", "results", "--out", "table.md"]) == EXIT_OK
        assert report.main(["html", "--results", "results"]) == EXIT_OK
    finally:
        os.umask(before)
    for file in [file for file in tmp_path.rglob("*") if file.is_file()]:
        most = 0o644 if file.name == lock.NAME else 0o666  # filelock's own; it is renamed, never written by others
        assert stat.S_IMODE(file.stat().st_mode) == most & ~mask, file
    assert len([file for file in tmp_path.rglob("*") if file.is_file()]) == 6
    holder.release()


def test_a_record_whose_metric_is_no_fraction_is_named_by_every_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tmp_path / "results", make(0.25, task="mnli", budget="0.3M"))
    path = save(tmp_path / "results", make(87.3, task="mnli", seed=1))
    for name in ("table1", "status", "choose", "html", "figure1", "figure2"):
        assert report.main([name, "--results", str(tmp_path / "results")]) == EXIT_OK
        lines = capsys.readouterr().err.splitlines()
        skipped = f"adalora-report: skipped: {path}: accuracy_m is 87.3, not a fraction of 1"
        assert lines.count(skipped) == 1, name
