"""Rows of the three sources, and one line for each way in which a user's data can be wrong."""

from __future__ import annotations

import gzip
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, Features, Value
from omegaconf import DictConfig
from task_configs import REAL_DATA, TASKS, needs_real_data, task_config, write_jsonl

from adalora_repro.errors import InputError
from adalora_repro.tasks import load_family, sources

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


@pytest.mark.parametrize("task", GOOD_ROWS)
def test_a_local_file_gives_the_columns_of_its_task(tmp_path: Path, task: str) -> None:
    cfg = local(tmp_path, task, train=[GOOD_ROWS[task], "", GOOD_ROWS[task] | {"unused": [1]}])
    sources.check(cfg)
    rows = sources.load_split(cfg, "train")
    assert sorted(rows.column_names) == sorted(sources.columns(cfg.task))
    assert len(rows) == sources.train_rows(cfg) == 2  # the blank line is none
    assert rows[1] == rows[0]
    if task == "stsb":
        assert rows[0]["label"] == 5.0
    if task == "squad":
        assert rows[0]["answers"] == {"text": ["France"], "answer_start": [12]}


def test_plain_files_are_read_too(tmp_path: Path) -> None:
    cfg = task_config("sst2", "local", data__dir=str(tmp_path))
    write_jsonl(tmp_path / "sst2" / "train.jsonl", [GOOD_ROWS["sst2"]] * 3, compress=False)
    write_jsonl(tmp_path / "sst2" / "validation.jsonl", [GOOD_ROWS["sst2"]], compress=False)
    sources.check(cfg)
    assert sources.train_rows(cfg) == len(sources.load_split(cfg, "train")) == 3


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
    ("squad", GOOD_ROWS["squad"] | {"answers": {"text": ["a"], "answer_start": []}}, "of equal lengths"),
    ("squad", GOOD_ROWS["squad"] | {"answers": {"text": ["a"], "answer_start": ["0"]}}, "column 'answers' must be"),
    ("squad", {k: v for k, v in GOOD_ROWS["squad"].items() if k != "id"}, "column 'id' is missing"),
    ("xsum", {"document": "x", "id": "1"}, "column 'summary' is missing"),
    ("xsum", {"document": "x", "summary": 1, "id": "1"}, "column 'summary' must be text, is a number"),
]


@pytest.mark.parametrize(("task", "line", "message"), BAD_LINES)
def test_a_bad_line_is_named(tmp_path: Path, task: str, line: Any, message: str) -> None:
    cfg = local(tmp_path, task, validation=[GOOD_ROWS[task], "", line])
    split = next(iter(cfg.task.validation.values()))
    with pytest.raises(InputError) as error:
        sources.load_split(cfg, split)
    assert str(error.value).startswith(f"{tmp_path / task / split}.jsonl.gz:3: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_blank_text_is_allowed(tmp_path: Path) -> None:
    cfg = local(tmp_path, "sst2", train=[{"sentence": "", "label": 0}])
    assert sources.load_split(cfg, "train")[0]["sentence"] == ""


def test_text_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    cfg = local(tmp_path, "sst2")
    (tmp_path / "sst2" / "train.jsonl.gz").write_bytes(gzip.compress(b'{"sentence": "\xe9", "label": 0}\n'))
    with pytest.raises(InputError, match=r"train\.jsonl\.gz:1: not JSON"):
        sources.load_split(cfg, "train")


TRUNCATED = gzip.compress(b'{"sentence": "x", "label": 0}\n' * 99, mtime=0)[:-20]


@pytest.mark.parametrize("damage", [b"no gzip at all", TRUNCATED], ids=["foreign", "truncated"])
def test_a_damaged_archive_is_named(tmp_path: Path, damage: bytes) -> None:
    cfg = local(tmp_path, "sst2")
    (tmp_path / "sst2" / "train.jsonl.gz").write_bytes(damage)
    for read in (lambda: sources.load_split(cfg, "train"), lambda: sources.train_rows(cfg)):
        with pytest.raises(InputError, match=r"train\.jsonl\.gz: cannot be read .*one JSON object a line"):
            read()


def test_an_empty_split_is_named(tmp_path: Path) -> None:
    cfg = local(tmp_path, "mnli", validation=[])
    for read in (lambda: sources.check(cfg), lambda: sources.load_split(cfg, "validation_matched")):
        with pytest.raises(InputError, match=r"validation_matched\.jsonl\.gz: empty"):
            read()


def test_check_names_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data=local needs data\.dir=DIR"):
        sources.check(task_config("rte", "local"))
    with pytest.raises(InputError, match=r"data\.dir=.*nowhere: no such folder"):
        sources.check(task_config("rte", "local", data__dir=str(tmp_path / "nowhere")))
    cfg = local(tmp_path, "mnli")
    (tmp_path / "mnli" / "validation_mismatched.jsonl.gz").unlink()
    with pytest.raises(InputError, match=r"validation_mismatched\.jsonl\.gz: no such file; it must hold one JSON"):
        sources.check(cfg)
    cfg = local(tmp_path, "sst2", validation=[{"sentence": "x"}])
    with pytest.raises(InputError, match=r"validation\.jsonl\.gz:1: column 'label' is missing"):
        sources.check(cfg)
    with pytest.raises(InputError, match=r"data\.sample_rows=0: the train split needs at least 1 row"):
        sources.check(task_config("rte", data__sample_rows=0))
    with pytest.raises(InputError, match="unknown data source 'web'; valid: hub, local, sample"):
        sources.check(task_config("rte", "web"))


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


# The hub, which no test reaches


def on_hub(monkeypatch: pytest.MonkeyPatch, answer: Dataset | Exception) -> list[tuple[Any, ...]]:
    calls: list[tuple[Any, ...]] = []

    def load_dataset(*args: Any, **options: Any) -> Dataset:
        calls.append((*args, options))
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    return calls


def hub_rows(labels: list[int]) -> Dataset:
    names = ["entailment", "not_entailment"]
    features = Features({"sentence1": Value("string"), "sentence2": Value("string"), "label": ClassLabel(names=names)})
    columns: dict[str, list[Any]] = {name: ["x"] * len(labels) for name in ("sentence1", "sentence2")}
    return Dataset.from_dict(columns | {"label": labels}, features=features)


def test_the_hub_is_asked_for_the_pinned_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = on_hub(monkeypatch, hub_rows([0, 1]))
    cfg = task_config("rte", "hub")
    assert sources.load_split(cfg, "validation")["label"] == [0, 1]
    assert calls == [("nyu-mll/glue", "rte", {"split": "validation", "revision": cfg.task.revision})]
    assert sources.train_rows(cfg) == 2490
    assert sources.provenance(cfg, {"train": 2})["revision"] == cfg.task.revision


def test_hidden_test_labels_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    on_hub(monkeypatch, hub_rows([0, -1]))
    with pytest.raises(InputError, match=r"nyu-mll/glue \(rte\) validation, row 1: label -1 is out of range"):
        sources.load_split(task_config("rte", "hub"), "validation")


def test_a_hub_data_set_that_is_empty_or_another_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    on_hub(monkeypatch, hub_rows([]))
    with pytest.raises(InputError, match="empty"):
        sources.load_split(task_config("rte", "hub"), "train")
    on_hub(monkeypatch, hub_rows([0]))
    with pytest.raises(InputError, match="column 'question' is missing"):
        sources.load_split(task_config("qnli", "hub"), "train")


def test_without_a_network_the_way_out_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    on_hub(monkeypatch, ConnectionError("Couldn't reach 'nyu-mll/glue' on the Hub\nsecond line"))
    with pytest.raises(InputError) as error:
        sources.load_split(task_config("rte", "hub"), "train")
    for part in ("nyu-mll/glue", "data=local data.dir=DIR", "data=sample", "HF_HOME"):
        assert part in str(error.value)
    assert "\n" not in str(error.value)
    on_hub(monkeypatch, OSError(28, "No space left on device"))
    with pytest.raises(InputError, match="cannot store nyu-mll/glue below HF_HOME"):
        sources.load_split(task_config("rte", "hub"), "train")


# Families


@pytest.mark.parametrize("task", TASKS)
def test_a_family_without_code_says_so(task: str) -> None:
    cfg = task_config(task)
    if cfg.task.family == "glue":
        assert load_family(cfg).primary_metric == cfg.task.primary_metric
        return
    cfg.task.family = "no_such_family"  # whether or not squad and summarization exist by now
    with pytest.raises(InputError, match=f"task={task}: .*later release; dry_run=true"):
        load_family(cfg)


def test_checks_import_nothing_heavy() -> None:
    code = "import sys; from adalora_repro.tasks import load_family, sources; print([m for m in sys.modules])"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "adalora_repro.tasks.sources" in modules
    assert not any(f"'{name}'" in modules for name in ("torch", "datasets", "transformers", "scipy", "sklearn"))


@needs_real_data
@pytest.mark.parametrize("task", ["cola", "rte", "mrpc", "stsb"])
def test_real_files_are_the_official_data(task: str) -> None:
    cfg = task_config(task, "local", data__dir=str(REAL_DATA))
    sources.check(cfg)
    assert sources.train_rows(cfg) == cfg.task.rows["train"]
    assert len(sources.load_split(cfg, "validation")) == cfg.task.rows["validation"]


@needs_real_data
@pytest.mark.parametrize("task", TASKS)
def test_real_files_pass_the_check(task: str) -> None:
    cfg = task_config(task, "local", data__dir=str(REAL_DATA))
    sources.check(cfg)
    assert sources.train_rows(cfg) > 1000
