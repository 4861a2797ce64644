"""Tokenized splits: the same rows by any number of processes and from the cache, whatever happens to either."""

import importlib.metadata
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from omegaconf import DictConfig
from programs import alive
from task_configs import task_config

from adalora_repro.models.backbones import byte_tokenizer
from adalora_repro.tasks import load_family, processes, tokenized
from adalora_repro.tasks.base import TaskData


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenized, "ROWS", 4)


@pytest.fixture
def maps(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """(rows, processes) of each time that a split is tokenized."""
    calls: list[tuple[int, int]] = []
    mapped = tokenized.mapped

    def counted(rows: Dataset, encode: Any, count: int, *rest: Any) -> Dataset:
        calls.append((len(rows), count))
        return mapped(rows, encode, count, *rest)

    monkeypatch.setattr(tokenized, "mapped", counted)
    return calls


def small(tmp_path: Path, task: str = "rte", **options: Any) -> DictConfig:
    sizes = {"data__cache_dir": str(tmp_path / "cache"), "data__sample_rows": 22, "data__sample_validation_rows": 9}
    if task.startswith("squad"):
        sizes |= {"task__max_length": 112, "task__stride": 16}
    return task_config(task, **sizes | options)


def loaded(cfg: DictConfig) -> TaskData:
    return load_family(cfg).load(byte_tokenizer())


def contents(data: TaskData) -> list[Any]:
    return [(rows.features, rows[:]) for rows in (data.train, *data.evaluation.values())]


# Processes


@pytest.mark.parametrize("task", ["cola", "squad_v2", "xsum"])
def test_several_processes_make_the_same_rows(task: str, tmp_path: Path, maps: list[tuple[int, int]]) -> None:
    torch.randn(300, 300) @ torch.randn(300, 300)  # its threads are not there after the fork
    one = loaded(small(tmp_path / "one", task, data__num_proc=1))
    several = loaded(small(tmp_path / "several", task, data__num_proc=3))
    assert maps == [(22, 1), (9, 1), (22, 3), (9, 3)]
    assert contents(several) == contents(one)
    assert several.provenance == one.provenance


@pytest.mark.parametrize(
    ("requested", "rows", "usable", "count"),
    [
        (None, 19_999, 4, 1),
        (None, 20_000, 4, 4),
        (None, 20_000, 3, 1),
        (None, 900_000, 64, 8),
        (1, 900_000, 4, 1),
        (20, 900_000, 4, 20),
        (20, 4_001, 4, 5),
    ],
)
def test_how_many_processes(
    requested: int | None, rows: int, usable: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenized, "ROWS", 1000)
    monkeypatch.setattr(processes, "usable", lambda: usable)
    assert load_family(task_config("cola", data__num_proc=requested)).processes(rows) == count


MAP = """
import os, signal, sys, time
from pathlib import Path
from datasets import Dataset, disable_progress_bars
from adalora_repro.tasks import processes, tokenized

class Interrupted(BaseException): pass
def stop(signum, frame): raise Interrupted
for signum in processes.SIGNALS: signal.signal(signum, stop)
disable_progress_bars()
tokenized.ROWS = 1

def encode(batch, numbers):
    Path(sys.argv[1], str(os.getpid())).touch()
    time.sleep(0.2)
    return {"y": batch["x"]}

def build(path):
    rows = Dataset.from_dict({"x": list(range(1000))})
    return tokenized.Entry(tokenized.mapped(rows, encode, 2, None, "abc", path))

before = os.environ.get(processes.TOKENIZER_THREADS)
try:
    tokenized.cached(Path(sys.argv[2], "entry"), build)
except Interrupted:
    print("interrupted", os.environ.get(processes.TOKENIZER_THREADS) == before)
"""


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGKILL])
def test_who_is_stopped_leaves_no_process_and_no_half_entry(tmp_path: Path, signum: int) -> None:
    """The signal goes to the whole group, as a terminal or a cluster sends it; SIGKILL to the parent alone."""
    (tmp_path / "pids").mkdir()
    words = [sys.executable, "-c", MAP, str(tmp_path / "pids"), str(tmp_path / "cache")]
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8", start_new_session=True
    ) as parent:
        deadline = time.monotonic() + 60
        while len(list((tmp_path / "pids").iterdir())) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text(encoding="utf-8").split()
        (parent.kill if signum == signal.SIGKILL else lambda: os.killpg(parent.pid, signum))()
        out, err = parent.communicate(timeout=60)
    assert (out, err) == ("" if signum == signal.SIGKILL else "interrupted True\n", "")
    assert len(children) == 3  # two workers and their manager
    deadline = time.monotonic() + 20
    while any(alive(int(pid)) for pid in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(alive(int(pid)) for pid in children)
    names = [path.name[:5] for path in (tmp_path / "cache").iterdir()]
    assert names == ([".new-"] if signum == signal.SIGKILL else [])


# The cache


def test_a_second_run_reads_the_cache(tmp_path: Path, maps: list[tuple[int, int]]) -> None:
    first = loaded(small(tmp_path))
    cfg = small(tmp_path)
    tokenizer = byte_tokenizer()
    tokenizer("the film", truncation=True, padding="max_length", max_length=5)  # leaves its mark on the tokenizer
    second = load_family(cfg).load(tokenizer)
    assert maps == [(22, 1), (9, 1)]
    assert contents(second) == contents(first)
    entries = list((tmp_path / "cache" / "tokenized").iterdir())
    assert {entry.stat().st_mode for entry in entries} == {(tmp_path / "cache").stat().st_mode}  # of any user
    assert [sorted(path.name for path in entry.iterdir()) for entry in entries] == [["notes.json", "rows.arrow"]] * 2


def another_version(cfg: DictConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    version = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.0.1" if name == "tokenizers" else version(name))


@pytest.mark.parametrize(
    "change",
    [
        lambda cfg, _: cfg.task.__setattr__("max_length", 9),
        lambda cfg, _: cfg.data.__setattr__("sample_seed", 1),
        lambda cfg, _: cfg.task.__setattr__("text_columns", ["sentence2", "sentence1"]),
        lambda cfg, _: cfg.data.__setattr__("skip_invalid", True),
        another_version,
    ],
)
def test_whatever_changes_the_tokens_changes_the_entry(
    tmp_path: Path, maps: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch, change: Callable[..., None]
) -> None:
    loaded(small(tmp_path))
    cfg = small(tmp_path)
    change(cfg, monkeypatch)
    loaded(cfg)
    assert len(maps) == 4


def flip_a_bit(entry: Path) -> None:
    """As a disk does it: time and size stay."""
    file = entry / "rows.arrow"
    content, stat = bytearray(file.read_bytes()), file.stat()
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def no_data(entry: Path) -> None:
    """Sums that fit a file which is no data set."""
    (entry / "rows.arrow").write_bytes(b"nonsense")
    notes = {"files": tokenized._sums([entry / "rows.arrow"]), "notes": {}}
    (entry / tokenized.NOTES).write_text(json.dumps(notes), encoding="utf-8")


@pytest.mark.parametrize(
    "damage",
    [
        flip_a_bit,
        no_data,
        lambda entry: (entry / tokenized.NOTES).unlink(),
        lambda entry: (entry / tokenized.NOTES).write_text("[]", encoding="utf-8"),
    ],
)
def test_a_damaged_entry_is_made_again(
    tmp_path: Path, maps: list[tuple[int, int]], damage: Callable[[Path], Any], caplog: pytest.LogCaptureFixture
) -> None:
    expected = contents(loaded(small(tmp_path)))
    for entry in (tmp_path / "cache" / "tokenized").iterdir():
        damage(entry)
    with caplog.at_level(logging.WARNING):
        assert contents(loaded(small(tmp_path))) == expected
    assert len(maps) == 4
    assert [message.count("is damaged and made again") for message in caplog.messages] == [1, 1]  # once for each split
    loaded(small(tmp_path))
    assert len(maps) == 4  # it is whole now


@pytest.mark.parametrize("count", [1, 2])
def test_a_cache_that_cannot_be_written_costs_memory_only(
    tmp_path: Path, count: int, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be", encoding="utf-8")
    with caplog.at_level(logging.WARNING):
        data = loaded(small(tmp_path, data__num_proc=count))
    assert len(data.train) == 22
    assert "are not kept" in caplog.text
