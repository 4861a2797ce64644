"""The SQuAD family: loss against transformers' own, batches, thresholds, the memory of an evaluation."""

import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from omegaconf import DictConfig
from task_configs import task_config, with_backbone, word_pieces, write_jsonl
from transformers import ByT5Tokenizer

from adalora_repro.errors import InputError
from adalora_repro.models import backbones
from adalora_repro.tasks import tokenized
from adalora_repro.tasks.base import TaskData
from adalora_repro.tasks.squad import Task

CONTEXT = "Rollo led the Normans to France. " * 4
ROW = {"id": "a", "question": "Who led?", "context": CONTEXT, "answers": {"text": ["Rollo"], "answer_start": [0]}}
WINDOW = {"task__max_length": 112, "task__stride": 16}


def with_answers(*answers: tuple[str, Any]) -> dict[str, Any]:
    return {"text": [text for text, _ in answers], "answer_start": [start for _, start in answers]}


def small(tmp_path: Path, task: str = "squad_v2", rows: list[Any] | None = None, **options: Any) -> DictConfig:
    """Rows of the sample, or the given ones as both splits."""
    settings: dict[str, Any] = {"data__cache_dir": str(tmp_path / "cache")} | WINDOW
    settings |= {"data__sample_rows": 12, "data__sample_validation_rows": 9}
    if rows is None:
        return task_config(task, **settings | options)
    for split in ("train", "validation"):
        write_jsonl(tmp_path / task / f"{split}.jsonl.gz", rows)
    return task_config(task, "local", **settings | {"data__dir": str(tmp_path)} | options)


def loaded(cfg: DictConfig, tokenizer: Any = None) -> tuple[Task, TaskData]:
    task = Task(cfg)
    return task, task.load(tokenizer or backbones.byte_tokenizer())


# Rows


def test_a_question_without_an_answer_must_be_allowed() -> None:
    row = ROW | {"answers": with_answers()}
    assert Task(task_config("squad_v2")).label_problem(row) is None
    for name, way in (("squad", "task=squad_v2"), ("custom_qa", "task.null_threshold=0")):
        problem = Task(task_config(name)).label_problem(row)
        assert problem == f"no answer, but every question of {name} has one ({way} allows none)"


def test_a_question_must_leave_room_for_more_than_the_stride() -> None:
    cfg = task_config("squad_v2", task__max_length=32, task__stride=10)  # 3 special tokens
    rows = [ROW | {"id": str(n), "question": f" {'q' * n} "} for n in (18, 19)]
    task = Task(cfg)
    task._tokenizer = backbones.byte_tokenizer()
    encoded = task.encode({name: [row[name] for row in rows] for name in ROW}, [0, 1], "validation")
    windows, problems = tokenized.good(Dataset.from_dict(encoded))
    assert problems == [
        "squad_v2 validation: id '19': the question has 19 tokens, which leaves no room for a context in windows of 32 "
        "tokens that share 10 (task.max_length, task.stride)"
    ]
    assert set(windows["id"]) == {"18"}
    assert windows["tokens"][:][0] == 11
    assert len(windows) == len(CONTEXT) - 10  # each brings one token of its own


def test_a_context_that_has_no_tokens(tmp_path: Path) -> None:
    tokenizer = word_pieces()
    rows = [ROW, ROW | {"id": "b", "context": "\u200b\ufffd", "answers": with_answers()}]
    with pytest.raises(InputError, match=r"squad_v2 train: id 'b': the context has no tokens; data\.skip"):
        loaded(small(tmp_path, rows=rows), tokenizer)
    _, data = loaded(small(tmp_path, rows=rows, data__skip_invalid=True), tokenizer)
    assert data.provenance["skipped"] == {"train": 1, "validation": 1}
    assert data.provenance["rows"] == {"train": 1, "validation": 1}


def test_a_tokenizer_without_offsets_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="ByT5Tokenizer does not say which characters"):
        loaded(small(tmp_path, backbone__name="tiny-bert"), ByT5Tokenizer())


# Batches and loss


def model_of(name: str, task: str = "squad_v2") -> Any:
    torch.manual_seed(0)
    return backbones.load_model(with_backbone(task_config(task), name)).eval()


@pytest.mark.parametrize("name", ["tiny-bert", "tiny-deberta"])
def test_the_loss_is_that_of_transformers(tmp_path: Path, name: str) -> None:
    task, data = loaded(small(tmp_path))
    model = model_of(name)
    batch = task.collate([data.train[i] for i in range(min(24, len(data.train)))])
    assert len(set(batch["start"].tolist())) > 3
    assert (batch["start"] == 0).any()
    loss, terms = task.loss(model, batch)
    expected = []
    for row, tokens in enumerate(batch["attention_mask"].sum(1).tolist()):  # one by one, so that nothing is padded
        inputs = {key: batch[key][row : row + 1, :tokens] for key in ("input_ids", "attention_mask")}
        places = {f"{key}_positions": batch[key][row : row + 1] for key in ("start", "end")}
        expected.append(model(**inputs, **places).loss)
    torch.testing.assert_close(loss, torch.stack(expected).mean())
    assert terms == len(batch["start"])
    loss.backward()
    assert model.qa_outputs.weight.grad.abs().sum() > 0


def test_batches(tmp_path: Path) -> None:
    task, data = loaded(small(tmp_path))
    lengths = data.train["length"][:]
    short = min(range(len(lengths)), key=lengths.__getitem__)
    assert lengths[short] < 104
    batch = task.collate([data.train[short]])
    width = -(-lengths[short] // 8) * 8
    assert {key: tuple(value.shape) for key, value in batch.items()} == {
        "input_ids": (1, width),
        "attention_mask": (1, width),
        "start": (1,),
        "end": (1,),
    }
    assert {value.dtype for value in batch.values()} == {torch.int64}
    rows = [data.evaluation["validation"][i] for i in range(5)]
    batch = task.collate(rows)
    assert sorted(batch) == ["attention_mask", "cls", "context", "input_ids"]
    assert batch["context"].dtype == torch.bool
    for row, context, mask in zip(rows, batch["context"].tolist(), batch["attention_mask"].tolist(), strict=True):
        (first, tokens, length) = (row[name] for name in ("first", "tokens", "length"))
        assert context == [first <= place < first + tokens for place in range(len(context))]
        assert sum(mask) == length == first + tokens + 1
    task, data = loaded(small(tmp_path, train__padding="max_length", task__max_length=109))
    assert task.collate([data.train[0]])["input_ids"].shape == (1, 109)


# Evaluation


def predictions(task: Task, data: TaskData) -> Iterator[dict[str, Any]]:
    """Random scores for the windows of the validation split."""
    generator, total = np.random.default_rng(0), len(data.evaluation["validation"])
    for begin in range(0, total, 4):
        index = list(range(begin, min(begin + 4, total)))
        first = generator.integers(0, 8, (len(index), 20))  # counted from the first token of the context
        score = generator.normal(size=(len(index), 20)).astype(np.float32)
        yield {"index": index, "score": score, "start": first, "end": first + 4, "null": score[:, 0] + 3.5}


def test_no_answer_to_every_question_is_noticed(tmp_path: Path) -> None:
    for threshold, constant in ((-1e9, {"validation": "no answer"}), (0.0, {})):
        task, data = loaded(small(tmp_path, task__null_threshold=threshold))
        found = task.metrics({"validation": predictions(task, data)})
        assert found.constant == constant
        assert (set(found.files["predictions.json"].values()) == {""}) == bool(constant)


@pytest.mark.parametrize(("side", "value"), [(0, math.nan), (1, -math.inf)], ids=["start", "end"])
@pytest.mark.parametrize("place", ["cls", "context", "padding"])
def test_a_logit_that_is_not_finite_is_found(tmp_path: Path, side: int, place: str, value: float) -> None:
    task, data = loaded(small(tmp_path))
    rows = data.evaluation["validation"]
    lengths = rows["length"][:]
    index = [min(range(len(rows)), key=lengths.__getitem__), max(range(len(rows)), key=lengths.__getitem__)]
    batch = task.collate([rows[i] for i in index])
    logits = torch.randn(2, *batch["input_ids"].shape, generator=torch.Generator().manual_seed(0))
    where = {"cls": 0, "context": int(rows[index[0]]["first"]), "padding": -1}[place]
    assert batch["attention_mask"][0, where] == (place != "padding")
    logits[side, 0, where] = value

    def model(**_: Any) -> Any:
        return SimpleNamespace(start_logits=logits[0], end_logits=logits[1])

    found = {name: value.numpy() for name, value in task.predict(model, batch).items()}
    if place == "padding":
        assert len(task.metrics({"validation": iter([found | {"index": index}])}).files["predictions.json"]) == 2
        return
    with pytest.raises(FloatingPointError, match="prediction on validation is not finite"):
        task.metrics({"validation": iter([found | {"index": index}])})
