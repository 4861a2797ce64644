"""Several processes: the same rows, problems and batches as one, whatever happens to them; and when they start."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from omegaconf import DictConfig
from task_configs import task_config, write_jsonl

from adalora_repro.errors import InputError
from adalora_repro.models import backbones
from adalora_repro.tasks import base, cache, load_family, processes
from adalora_repro.tasks.base import TaskData
from adalora_repro.training import batches as batches_of_a_run
from adalora_repro.training.batches import FEW_BATCHES, WORKERS, loaded, workers_for

ROWS = 4  # tokenized at once, here
CONTEXT = "Rollo led the Normans to France. " * 8
ANSWERS = {"text": ["Rollo"], "answer_start": [0]}


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "ROWS", ROWS)


@pytest.fixture
def forks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many processes each use of several was given."""
    found: list[int] = []
    in_order = processes.in_order

    def counted(work: Any, pieces: Any, count: int) -> Iterator[Any]:
        found.append(count)
        return in_order(work, pieces, count)

    monkeypatch.setattr(processes, "in_order", counted)
    return found


def small(tmp_path: Path, task: str, **options: Any) -> DictConfig:
    settings = {"data__cache_dir": str(tmp_path / "cache"), "data__sample_rows": 22, "data__sample_validation_rows": 9}
    if task.startswith("squad"):
        settings |= {"task__max_length": 112, "task__stride": 16}
    return task_config(task, **settings | options)


def tokenized(cfg: DictConfig) -> TaskData:
    return load_family(cfg).load(backbones.byte_tokenizer())


def content(rows: Dataset) -> tuple[Any, list[Any]]:
    return rows.features, rows[:]


# Tokenizing


@pytest.mark.parametrize("task", ["cola", "stsb", "squad_v2", "xsum"])
def test_several_processes_make_the_same_rows(task: str, tmp_path: Path, forks: list[int]) -> None:
    torch.randn(300, 300) @ torch.randn(300, 300)  # its threads are not there after the fork
    one = tokenized(small(tmp_path / "one", task, data__num_proc=1))
    assert forks == []
    several = tokenized(small(tmp_path / "several", task, data__num_proc=3))
    assert forks == [3, 3]
    assert content(several.train) == content(one.train)
    assert content(several.evaluation["validation"]) == content(one.evaluation["validation"])
    assert several.provenance == one.provenance
    tokenized(small(tmp_path / "several", task, data__num_proc=2))
    assert forks == [3, 3], "not from the cache"


def test_processes_that_the_cache_does_not_ask_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys: list[str] = []

    def cached(root: Path, name: str, build: Any) -> cache.Entry:
        del root
        keys.append(name)
        return build()

    monkeypatch.setattr(cache, "cached", cached)
    for count in (1, 2, None):
        tokenized(small(tmp_path, "cola", data__num_proc=count))
    assert keys[:2] == keys[2:4] == keys[4:]


@pytest.mark.parametrize(
    ("task", "asked", "rows", "usable", "count"),
    [
        ("cola", None, 19_999, 4, 1),
        ("cola", None, 20_000, 4, 4),
        ("cola", None, 20_000, 2, 2),
        ("cola", None, 20_000, 1, 1),
        ("squad", None, 20_000, 4, 4),
        ("squad", None, 20_000, 3, 1),
        ("xsum", None, 20_000, 3, 1),
        ("xsum", None, 900_000, 64, 8),
        ("squad", 1, 900_000, 4, 1),
        ("squad", 2, 5_000, 1, 2),
        ("squad", 20, 900_000, 4, 20),
        ("squad", 20, 4_001, 4, 5),
        ("squad", 20, 7, 4, 1),
    ],
)
def test_how_many_processes(
    task: str, asked: int | None, rows: int, usable: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "ROWS", 1000)
    monkeypatch.setattr(processes, "usable", lambda: usable)
    assert load_family(task_config(task, data__num_proc=asked)).processes(rows) == count


def test_the_cpus_of_a_process_are_those_it_is_bound_to() -> None:
    command = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
    command += "from adalora_repro.tasks import processes; print(processes.usable())"
    assert subprocess.check_output([sys.executable, "-c", command], text=True, encoding="utf-8") == "1\n"


def squad_rows(tmp_path: Path, bad: dict[int, str], **options: Any) -> list[DictConfig]:
    """18 rows in which questions are too long, which only tokenizing finds; for one process and for three."""
    rows = [{"id": f"q{i}", "question": bad.get(i, "Who led?"), "context": CONTEXT} for i in range(18)]
    for split in ("train", "validation"):
        write_jsonl(tmp_path / "squad" / f"{split}.jsonl.gz", [row | {"answers": ANSWERS} for row in rows])
    files = {"data__source": "local", "data__dir": str(tmp_path)}
    caches = {count: {"data__cache_dir": str(tmp_path / str(count))} for count in (1, 3)}
    return [small(tmp_path, "squad", data__num_proc=count, **caches[count], **files, **options) for count in caches]


def test_bad_rows_are_the_same_in_the_same_order(tmp_path: Path, forks: list[int]) -> None:
    bad = {1: "q" * 99, 2: "q" * 98, 7: "q" * 97, **dict.fromkeys(range(8, 12), "q" * 96), 17: "q" * 95}
    one, several = map(tokenized, squad_rows(tmp_path, bad, data__skip_invalid=True))
    assert forks == [3, 3]
    assert [problem.split("'")[1] for problem in several.skipped["train"]] == [f"q{i}" for i in bad]
    assert several.skipped == one.skipped
    assert several.provenance == one.provenance
    assert several.provenance["rows"] == {"train": 10, "validation": 10}
    assert content(several.train) == content(one.train)
    assert content(several.evaluation["validation"]) == content(one.evaluation["validation"])


def test_the_first_bad_row_stops_the_run(tmp_path: Path, forks: list[int]) -> None:
    lines = []
    for cfg in squad_rows(tmp_path, {17: "q" * 99, 6: "q" * 98, 7: "q" * 97}):
        with pytest.raises(InputError) as error:
            tokenized(cfg)
        lines.append(str(error.value))
    assert forks == [3]
    assert lines[0] == lines[1]
    assert lines[0].startswith("squad train: id 'q6': the question has 98 tokens")


# Processes


def test_answers_come_in_order_whoever_is_first() -> None:
    together = multiprocessing.get_context("fork").Barrier(3)

    def work(piece: int) -> tuple[int, int]:
        if piece < 3:
            together.wait(timeout=60)  # each has one of the first pieces
        time.sleep(0.1 * (piece % 3 == 0))
        return piece, os.getpid()

    found = list(processes.in_order(work, range(11), 3))
    assert [piece for piece, _ in found] == list(range(11))
    pids = [pid for _, pid in found]
    assert len(set(pids)) == 3
    assert os.getpid() not in pids
    assert not any(alive(pid) for pid in pids)


def test_an_answer_may_be_larger_than_a_pipe() -> None:
    sizes = [3_000_000, 5, 1_000_000]
    assert [len(answer) for answer in processes.in_order(bytes, sizes, 2)] == sizes


def test_the_earliest_piece_says_what_is_wrong() -> None:
    def work(piece: int) -> int:
        if piece in (4, 5, 7):
            time.sleep(0.05 * (piece == 4))
            raise InputError(f"piece {piece}")
        return piece

    found = processes.in_order(work, range(9), 3)
    assert [next(found) for _ in range(4)] == [0, 1, 2, 3]
    with pytest.raises(InputError, match=r"^piece 4$"):
        next(found)


def test_another_error_comes_with_its_traceback() -> None:
    def work(piece: int) -> float:
        return 1 / piece

    with pytest.raises(ZeroDivisionError) as error:
        list(processes.in_order(work, [1, 0], 2))
    assert "return 1 / piece" in str(error.value.__cause__)


def test_a_process_that_is_killed_is_not_waited_for() -> None:
    def work(piece: int) -> int:
        if piece == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return piece

    with pytest.raises(RuntimeError, match=r"terminated abruptly"):
        list(processes.in_order(work, range(8), 2))


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except OSError:
        return False


def test_who_stops_asking_ends_the_processes() -> None:
    found = processes.in_order(lambda _: (os.getpid(), bytes(300_000)), range(100), 2)  # more than a pipe takes
    pids = [next(found)[0] for _ in range(2)]
    assert all(map(alive, pids))
    found.close()  # type: ignore[attr-defined]
    assert not any(map(alive, pids))


def test_processes_end_when_their_parent_is_killed() -> None:
    command = (
        "import os, time; from adalora_repro.tasks import processes\n"
        "for pid in processes.in_order(lambda _: (time.sleep(0.05), os.getpid())[1], range(1000), 2):\n"
        "    print(pid, flush=True)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", command], stdout=subprocess.PIPE, text=True, encoding="utf-8"
    ) as parent:
        assert parent.stdout is not None
        pids = [int(parent.stdout.readline()) for _ in range(2)]
        assert all(map(alive, pids))
        parent.kill()
    deadline = time.monotonic() + 10
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(map(alive, pids))


def signals(_: Any = None) -> tuple[list[Any], list[Any]]:
    return [signal.getsignal(s) for s in processes.SIGNALS], [*signal.pthread_sigmask(signal.SIG_BLOCK, [])]


def test_signals_are_the_parents() -> None:
    before = signals()
    for handlers, blocked in processes.in_order(signals, [1, 2], 2):
        assert handlers == [signal.SIG_IGN] * len(processes.SIGNALS)
        assert blocked == []
    assert signals() == before


@pytest.mark.parametrize("said", [None, "true", "false"])
def test_a_fork_is_silent_about_the_tokenizers_threads(
    said: str | None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(processes.TOKENIZER_THREADS, raising=False)
    if said is not None:
        monkeypatch.setenv(processes.TOKENIZER_THREADS, said)
    tokenizer = backbones.byte_tokenizer()
    texts = ["Rollo led the Normans"] * 64
    expected = tokenizer(texts)["input_ids"]  # with threads, if it may
    assert list(processes.in_order(lambda _: tokenizer(texts)["input_ids"], [1, 2], 2)) == [expected] * 2
    list(batches_of(2))
    assert capfd.readouterr().err == ""
    assert os.environ.get(processes.TOKENIZER_THREADS) == said
    if said is None:  # what is true of the environment that Python shows is true of the one that Rust reads
        assert processes.TOKENIZER_THREADS not in subprocess.check_output(["env"], text=True, encoding="utf-8")


# Batches


def batches_of(workers: int, count: int = 5) -> Iterator[dict[str, Any]]:
    rows = Dataset.from_dict({"number": list(range(3 * count))})
    parts = [[3 * i, 3 * i + 2, 3 * i + 1] for i in range(count)]

    def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
        numbers = torch.tensor([row["number"] for row in rows])
        return {"number": numbers, "signals": signals(), "pid": os.getpid()}

    return loaded(rows, parts, collate, torch.device("cpu"), workers)


def test_batches_made_beside_the_step_are_the_same() -> None:
    one, several = list(batches_of(0)), list(batches_of(2))
    assert [batch["number"].tolist() for batch in one] == [batch["number"].tolist() for batch in several]
    assert {batch["pid"] for batch in one} == {os.getpid()}
    assert len({batch["pid"] for batch in several} - {os.getpid()}) == 2
    for batch in several:
        assert batch["signals"] == ([signal.SIG_IGN] * len(processes.SIGNALS), [])


def test_who_wants_no_more_batches_ends_the_workers() -> None:
    batches = batches_of(2, count=200)
    pids = [next(batches)["pid"] for _ in range(2)]
    began = time.monotonic()
    batches.close()  # type: ignore[attr-defined]
    assert not any(map(alive, pids))
    assert time.monotonic() - began < 4, "the loader waited in vain for five seconds and killed them"


@pytest.mark.parametrize(
    ("asked", "device", "batches", "usable", "workers"),
    [
        (None, "cpu", 10**6, 16, 0),
        (None, "cuda", FEW_BATCHES - 1, 16, 0),
        (None, "cuda", FEW_BATCHES, 16, WORKERS),
        (None, "cuda", 10**6, 1, 0),
        (3, "cpu", 1, 1, 3),
        (0, "cuda", 10**6, 16, 0),
    ],
)
def test_how_many_workers(
    asked: int | None, device: str, batches: int, usable: int, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adalora_repro.training.batches.usable", lambda: usable)
    assert workers_for(asked, torch.device(device), batches) == workers

    def caught(*arguments: Any) -> int:
        return arguments[-1]

    monkeypatch.setattr(batches_of_a_run, "loaded", caught)
    loop: Any = SimpleNamespace(
        task=SimpleNamespace(collate=None),
        device=torch.device(device),
        plan=SimpleNamespace(cfg=SimpleNamespace(train=SimpleNamespace(num_workers=asked))),
    )
    assert batches_of_a_run.on_device(loop, Dataset.from_dict({}), range(batches), batches) == workers  # type: ignore[arg-type, comparison-overlap]
