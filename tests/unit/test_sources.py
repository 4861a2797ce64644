"""Rows of the three sources, and one line for each way in which a user's data can be wrong."""

import gzip
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, Features, Value
from datasets.exceptions import DatasetGenerationError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig
from task_configs import ROOT, task_config, write_jsonl

from adalora_repro.errors import InputError
from adalora_repro.tasks import load_family, row_files, sources
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


def test_two_files_of_one_split_are_refused(tmp_path: Path) -> None:
    cfg = local(tmp_path, "sst2")
    other = write_jsonl(tmp_path / "sst2" / "validation.jsonl", [GOOD_ROWS["sst2"]], compress=False)
    with pytest.raises(InputError) as error:
        check(cfg)
    assert str(error.value) == f"{other}.gz and {other} each contain the validation split; keep only one"


SQUAD = GOOD_ROWS["squad"]


def answered(*answers: tuple[Any, Any]) -> dict[str, Any]:
    return SQUAD | {"answers": {"text": [text for text, _ in answers], "answer_start": [start for _, start in answers]}}


BAD_LINES = [
    ("sst2", "{broken", "not JSON"),
    ("sst2", b'{"sentence": "\xe9", "label": 0}', "not JSON"),
    ("sst2", "[" * 100_000, "not JSON"),
    ("sst2", '"text"', "not an object but 'text'"),
    ("sst2", {"text": "x", "label": 0}, "column 'sentence' is missing (found: text, label)"),
    ("sst2", "{}", "column 'sentence' is missing (found: none)"),
    ("sst2", {"sentence": 3, "label": 0}, "column 'sentence' must be text, not 3"),
    ("sst2", {"sentence": "x", "label": 2}, "label 2 is out of range, must be 0 to 1"),
    ("sst2", {"sentence": "x", "label": -1}, "label -1 is out of range, must be 0 to 1"),
    ("sst2", {"sentence": "x", "label": 0.5}, "label 0.5 is not an integer"),
    ("sst2", {"sentence": "x", "label": True}, "column 'label' must be a number, is True"),
    ("sst2", '{"sentence": "x\\ud800", "label": 0}', "column 'sentence' contains an unpaired surrogate"),
    ("stsb", {"sentence1": "a", "sentence2": "b", "label": 5.1}, "label 5.1 is out of range, must be 0 to 5"),
    ("stsb", '{"sentence1": "a", "sentence2": "b", "label": NaN}', "label nan is out of range"),
    ("squad", answered(("France", 11)), "the answer 'France' is not at its offset 11, there is ' Franc'"),
    ("squad", answered(("France", 12), ("is", 5)), "the answer 'is' is not at its offset 5"),
    ("squad", answered(("ce", -2)), "the answer 'ce' is not at its offset -2, there is ''"),
    ("squad", answered(("France", 10**12)), "is not at its offset 1000000000000, there is ''"),
    ("squad", answered(("Fr\nance " * 30, 12)), "the answer 'Fr ance Fr ance Fr ance Fr ance Fr ance…' is not"),
    ("squad", answered(("", 0)), "an answer is empty"),
    ("squad", SQUAD | {"context": " \n"}, "the context is empty"),
    ("squad", SQUAD | {"question": "\t "}, "the question is empty"),
    ("squad", SQUAD | {"answers": None}, "answer_start: [integer, …]} of equal lengths"),
    ("squad", SQUAD | {"answers": {"text": ["France"], "answer_start": []}}, "of equal lengths"),
    ("squad", SQUAD | {"answers": {"text": ["France"]}}, "of equal lengths"),
    ("squad", answered((5, 0)), "of equal lengths"),
    ("squad", answered(("Paris", False)), "of equal lengths"),
    ("squad", answered(("Paris", 0.0)), "of equal lengths"),
    ("squad", SQUAD | {"id": 1}, "column 'id' must be text, not 1"),
    ("xsum", {"document": "long", "summary": "\u00a0", "id": "1"}, "the summary is empty"),
    ("xsum", {"document": "x", "summary": 1, "id": "1"}, "column 'summary' must be text, not 1"),
]


@pytest.mark.parametrize(("task", "line", "message"), BAD_LINES)
def test_a_bad_line_is_named_and_left_out_on_demand(tmp_path: Path, task: str, line: Any, message: str) -> None:
    good = GOOD_ROWS[task] | ({"id": "2"} if "id" in GOOD_ROWS[task] else {})
    raw = isinstance(line, bytes)
    cfg = local(tmp_path, task, validation=[good] if raw else [good, "", line])
    path = tmp_path / task / "validation.jsonl.gz"
    if raw:
        path.write_bytes(gzip.compress(json.dumps(good).encode() + b"\n\n" + line))
    with pytest.raises(InputError) as error:
        load(cfg, "validation")
    named = ": id '1'" if isinstance(line, dict) and isinstance(line.get("id"), str) else ""
    assert str(error.value).startswith(f"{path}:3{named}: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert str(error.value).endswith("; data.skip_invalid=true leaves such rows out")

    bad = sources.BadRows(True)
    assert len(load(cfg, "validation", bad)) == 1
    (problem,) = bad.problems
    assert f"{problem}; data.skip_invalid=true leaves such rows out" == str(error.value)


def test_documents_of_the_papers_sets_may_be_empty(tmp_path: Path) -> None:
    rows = [{"document": text, "summary": "short", "id": text} for text in ("", " \n", "long")]
    assert len(load(local(tmp_path, "xsum", validation=rows), "validation")) == 3


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
def test_what_is_no_file_is_named(tmp_path: Path, make: Any, kind: str) -> None:
    cfg = local(tmp_path, "sst2")
    (tmp_path / "sst2" / "validation.jsonl.gz").unlink()
    make(tmp_path / "sst2" / "validation.jsonl.gz")
    with pytest.raises(InputError, match=rf"validation\.jsonl\.gz: {kind}, not a file; it must hold one JSON object"):
        check(cfg)


@pytest.mark.parametrize(("lines", "why"), [([], "empty"), (["{", "{"], r"no valid row \(.*\.gz:1: not JSON .*\)")])
def test_a_split_of_which_nothing_is_left_is_named(tmp_path: Path, lines: list[Any], why: str) -> None:
    cfg = local(tmp_path, "sst2", validation=lines)
    cfg.data.skip_invalid = True
    for read in (lambda: check(cfg), lambda: load(cfg, "validation", sources.BadRows(True))):
        with pytest.raises(InputError, match=rf"validation\.jsonl\.gz: {why}; the validation split of sst2 must have"):
            read()


def test_check_names_what_is_missing(tmp_path: Path) -> None:
    cfg = local(tmp_path, "mnli")
    (tmp_path / "mnli" / "validation_mismatched.jsonl.gz").unlink()
    with pytest.raises(InputError, match=r"validation_mismatched\.jsonl\.gz: no such file; it must hold one JSON"):
        check(cfg)
    cfg = local(tmp_path, "sst2", validation=[{"sentence": "x"}])
    with pytest.raises(InputError, match=r"validation\.jsonl\.gz:1: column 'label' is missing"):
        check(cfg)
    with pytest.raises(InputError, match=r"data\.sample_rows=0: the train split needs at least 1 row"):
        check(task_config("rte", data__sample_rows=0))


ROW = st.dictionaries(
    st.text(max_size=5), st.one_of(st.none(), st.integers(), st.text(), st.floats(allow_nan=False)), max_size=4
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
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
    "other", [[{"a": 2}, {"a": 1}], [{"a": 1}], [{"a": 1}, {"a": "2"}], [{"a": 1}, {"b": 2}], [{"a": 1}, "{broken"]]
)
def test_other_rows_are_other_data(tmp_path: Path, other: list[Any]) -> None:
    before = sources.fingerprint(local(tmp_path, "sst2", train=[{"a": 1}, {"a": 2}]))
    cfg = local(tmp_path, "sst2", train=other)
    assert sources.fingerprint(cfg) != before
    assert sources.train_rows(cfg) == len(other)


def test_a_large_file_is_parsed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "LARGE", 1)
    cfg = local(tmp_path, "sst2", train=[{"sentence": f"kept {number}"} for number in range(5)])
    cfg.data.cache_dir = str(tmp_path / "cache")
    before = sources.fingerprint(cfg)
    kept = list((tmp_path / "cache" / "rows").glob("*.json"))
    assert len(kept) == 2  # of the train and the validation split
    read = row_files.lines
    for damage in (None, b"", b"{}", b"[1]"):
        sources._content_of.cache_clear()
        for path in kept:
            path.write_bytes(path.read_bytes() if damage is None else damage)
        monkeypatch.setattr(row_files, "lines", None if damage is None else read)
        assert (sources.fingerprint(cfg), sources.train_rows(cfg)) == (before, 5)
    cfg.data.cache_dir = str(tmp_path / "sst2" / "train.jsonl.gz")  # no folder, so nothing can be kept
    sources._content_of.cache_clear()
    assert sources.fingerprint(cfg) == before


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


def test_bad_rows_of_the_hub_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = [index % 2 for index in range(1500)]
    labels[1] = labels[1234] = -1  # as in GLUE's test splits
    on_hub(monkeypatch, hub_rows(labels))
    cfg, bad = task_config("rte", "hub"), sources.BadRows(True)
    assert load(cfg, "validation", bad)["label"][:] == [label for label in labels if label >= 0]
    where = "nyu-mll/glue (rte) validation, row"
    assert bad.problems == [f"{where} {row}: label -1 is out of range, must be 0 to 1" for row in (1, 1234)]
    with pytest.raises(InputError, match=r"nyu-mll/glue \(rte\) validation, row 1: label -1 is out of range"):
        load(cfg, "validation")


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


@pytest.mark.parametrize("task", ["squad", "xsum"])
def test_an_id_is_refused_the_second_time(tmp_path: Path, task: str) -> None:
    good, (text, *_) = GOOD_ROWS[task], task_config(task).task.text_columns
    cfg = local(tmp_path, task, train=[good | {text: 1}, good, good | {"id": "2"}, good])
    path = tmp_path / task / "train.jsonl.gz"
    expected = f"{path}:4: id '1': duplicate id, first in {path}:2"  # the id of a bad row is still free
    bad = sources.BadRows(True)
    assert load(cfg, "train", bad)["id"][:] == ["1", "2"]
    assert bad.problems[1:] == [expected]


# The hub, which no test reaches


def on_hub(monkeypatch: pytest.MonkeyPatch, answer: Dataset) -> list[tuple[Any, ...]]:
    calls: list[tuple[Any, ...]] = []

    def load_dataset(*args: Any, **options: Any) -> Dataset:
        calls.append((*args, options))
        return answer

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # nobody looks for a connection
    return calls


def hub_rows(labels: list[int]) -> Dataset:
    names = ["entailment", "not_entailment"]
    features = Features({"sentence1": Value("string"), "sentence2": Value("string"), "label": ClassLabel(names=names)})
    columns: dict[str, list[Any]] = {name: ["x"] * len(labels) for name in ("sentence1", "sentence2")}
    return Dataset.from_dict(columns | {"label": labels}, features=features)


@pytest.mark.parametrize(
    ("error", "cause", "reason"),
    [
        (DatasetGenerationError("An error"), OSError(28, "No space left on device"), "[Errno 28] No space left on"),
        (ConnectionError("Couldn't reach 'nyu-mll/glue' on the Hub\nmore"), None, "Couldn't reach 'nyu-mll/glue' on"),
        (ValueError('Unknown split "dev".'), None, 'Unknown split "dev".'),
    ],
    ids=["full disk", "no network", "no such split"],
)
def test_what_the_hub_does_not_give_is_one_line(
    monkeypatch: pytest.MonkeyPatch, error: Exception, cause: Exception | None, reason: str
) -> None:
    def fail(*args: Any, **options: Any) -> None:
        raise error from cause

    monkeypatch.setattr("datasets.load_dataset", fail)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=re.escape(f"cannot load nyu-mll/glue ({reason}")) as refused:
        load(task_config("rte", "hub"), "validation")
    line = str(refused.value)
    assert "\n" not in line
    assert all(word in line for word in ("data=local data.dir=DIR", "data=sample", "HF_HOME"))


def test_the_hub_is_asked_for_the_pinned_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = on_hub(monkeypatch, hub_rows([0, 1]))
    cfg = task_config("rte", "hub")
    assert load(cfg, "validation")["label"] == [0, 1]
    assert calls == [("nyu-mll/glue", "rte", {"split": "validation", "revision": cfg.task.revision})]
    assert sources.train_rows(cfg) == 2490
    assert sources.provenance(cfg, {"train": 2})["revision"] == cfg.task.revision


def test_a_hub_data_set_that_is_empty_or_another_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    on_hub(monkeypatch, hub_rows([]))
    with pytest.raises(InputError, match="empty"):
        load(task_config("rte", "hub"), "train")
    on_hub(monkeypatch, hub_rows([0]))
    with pytest.raises(InputError, match="column 'question' is missing"):
        load(task_config("qnli", "hub"), "train")


# Families


def test_the_page_on_own_data_lists_what_a_family_has() -> None:
    section = (ROOT / "docs" / "own-data.md").read_text(encoding="utf-8").partition("\n## A task family\n")[2]
    listed = {name for cell in re.findall(r"^\| (`.+?) \|", section, re.M) for name in re.findall(r"`(\w+)", cell)}
    names = {name for name in {*vars(BaseTask), *BaseTask.__annotations__} if not name.startswith("_")}
    assert listed == names - {"load", "max_length", "metrics", "processes", "tokenizer", "use"}  # the same for all
