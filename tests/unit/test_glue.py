"""The GLUE family: what it makes of predictions, loss against torch, batches."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import DictConfig
from task_configs import REAL_DATA, needs_real_data, task_config
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from adalora_repro.models.backbones import byte_tokenizer
from adalora_repro.tasks import glue, load_family, sources
from adalora_repro.tasks.base import Evaluation, TaskData


def tiny_tokenizer(limit: int = 512) -> PreTrainedTokenizerBase:
    """Single bytes, and token types as BERT's."""
    tokenizer = byte_tokenizer(limit)
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    return tokenizer


def small(tmp_path: Path, task: str = "rte", **options: Any) -> DictConfig:
    sizes = {"data__sample_rows": 40, "data__sample_validation_rows": 12}
    return task_config(task, **sizes | {"data__cache_dir": str(tmp_path / "cache")} | options)


def rows_of(cfg: DictConfig, split: str) -> Dataset:
    return sources.load_split(cfg, split, glue.Task(cfg), sources.BadRows(False))


def loaded(cfg: DictConfig, tokenizer: PreTrainedTokenizerBase | None = None) -> tuple[glue.Task, TaskData]:
    task = glue.Task(cfg)
    return task, task.load(tokenizer or tiny_tokenizer())


# Metrics


def logits_of(predicted: list[int], classes: int) -> np.ndarray[Any, Any]:
    return np.float32(np.arange(classes) == np.array(predicted)[:, None]) / 3


def evaluation(
    task: str, labels: list[Any], predicted: list[Any], batch: int = 7, order: list[int] | None = None
) -> Evaluation:
    """What the family makes of batches of these, in ``order`` (as the loop has them: not as in the split)."""
    cfg = task_config(task)
    order = list(range(len(labels))) if order is None else order
    parts = [order[start : start + batch] for start in range(0, len(labels), batch)]
    columns = {"label": np.array(labels), "prediction": np.array(predicted)}
    if cfg.task.num_labels > 1:
        columns["logits"] = logits_of(predicted, cfg.task.num_labels)
    batches = [{name: column[part] for name, column in columns.items()} | {"index": part} for part in parts]
    return glue.Task(cfg).metrics({split: iter(batches) for split in cfg.task.validation.values()})


@pytest.mark.parametrize(
    ("task", "predicted", "constant"),
    [
        ("cola", [1, 1, 1], "class 1"),
        ("cola", [0, 0, 0], "class 0"),
        ("cola", [0, 0, 1], None),
        ("cola", [1], None),  # one example says nothing
        ("stsb", [2.5, 2.5, 2.5], "2.5"),
        ("stsb", [2.5, 2.500001, 2.5], "2.5"),  # rounding
        ("stsb", [2.5, 2.501, 2.5], None),
        ("stsb", [2.5], None),
    ],
)
def test_the_same_prediction_for_all_examples_is_noticed(task: str, predicted: list[Any], constant: str | None) -> None:
    found = evaluation(task, [0, 1, 1][: len(predicted)], predicted, batch=2)
    assert found.constant == ({} if constant is None else {"validation": constant})


def test_the_held_out_split_has_the_primary_metric_s_name() -> None:
    """MNLI's primary metric is of the matched split, so accuracy_m; both others are as they are without it."""
    cfg = task_config("mnli", data__holdout=3)
    common = {"label": np.array([0, 1, 2]), "index": [0, 1, 2]}
    right, wrong = ([common | {"prediction": np.array(p), "logits": logits_of(p, 3)}] for p in ([0, 1, 2], [1, 1, 1]))
    found = glue.Task(cfg).metrics({"validation_matched": wrong, "validation_mismatched": right, "holdout": wrong})
    assert found.metrics == {"accuracy_m": 1 / 3, "accuracy_mm": 1.0}
    assert found.holdout == {"accuracy_m": 1 / 3}
    assert found.constant == {"validation_matched": "class 1", "holdout": "class 1"}
    assert found.entry == {"metrics": found.metrics, "holdout": found.holdout}
    assert set(found.files) == {
        f"predictions.{split}.jsonl.gz" for split in ("validation_matched", "validation_mismatched", "holdout")
    }


@given(st.data())
def test_predictions_are_kept_in_the_order_of_the_split(data: st.DataObject) -> None:
    cases = data.draw(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=2, max_size=40))
    labels, predicted = map(list, zip(*cases, strict=True))
    order = data.draw(st.permutations(range(len(cases))))
    found = evaluation("mnli", labels, predicted, data.draw(st.integers(1, 9)), order)
    classes = task_config("mnli").task.class_names
    rows = [
        {"index": index, "label": label, "prediction": prediction}
        | {"logits": [0.333333 * (number == prediction) for number in range(3)]}  # six digits
        | {"label_name": classes[label], "prediction_name": classes[prediction]}
        for index, (label, prediction) in enumerate(cases)
    ]
    names = [f"predictions.validation_{name}.jsonl.gz" for name in ("matched", "mismatched")]
    assert found.files == dict.fromkeys(names, rows)
    assert json.loads(json.dumps(found.files)) == found.files  # plain integers, not NumPy's
    assert found.metrics["accuracy_m"] == pytest.approx(np.mean([a == b for a, b in cases]))


def test_predictions_that_are_not_finite_are_no_result() -> None:
    with pytest.raises(FloatingPointError, match="1 of 3 predictions on validation are not finite"):
        evaluation("stsb", [0.0, 1.0, 2.0], [0.0, float("nan"), 1.0])
    with pytest.raises(FloatingPointError, match="1 of 2 predictions"):
        evaluation("rte", [0, 1], [0, -1])


# Batches, loss, predictions


class Fixed(nn.Module):
    """A model that answers with given logits and refuses labels, as one without a loss of its own."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self.logits)


def batch_of(labels: list[Any]) -> dict[str, Tensor]:
    ids = torch.ones(len(labels), 4, dtype=torch.int64)
    return {"input_ids": ids, "attention_mask": ids, "labels": torch.tensor(labels)}


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_classification_loss_is_the_mean_cross_entropy_in_float32(kind: torch.dtype) -> None:
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)).to(kind)
    loss, terms = glue.Task(task_config("mnli")).loss(Fixed(logits), batch_of([0, 1, 2, 2, 0]))
    probabilities = logits.float().softmax(-1)[range(5), [0, 1, 2, 2, 0]]
    assert terms == 5
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, -probabilities.log().mean())


def test_regression_loss_is_the_mean_squared_error() -> None:
    loss, terms = glue.Task(task_config("stsb")).loss(Fixed(torch.tensor([[1.0], [4.0]])), batch_of([3.0, 5.0]))
    assert (loss.item(), terms) == ((4.0 + 1.0) / 2, 2)


def test_predictions() -> None:
    logits = torch.tensor([[0.0, 2.0], [3.0, 1.0], [float("nan"), 0.0], [float("inf"), 0.0]])
    found = glue.Task(task_config("rte")).predict(Fixed(logits), batch_of([1, 1, 0, 0]))
    assert found["prediction"].tolist() == [1, 0, -1, -1]
    assert found["logits"][:2].tolist() == [[0.0, 2.0], [3.0, 1.0]]
    assert found["label"].tolist() == [1, 1, 0, 0]
    found = glue.Task(task_config("stsb")).predict(Fixed(torch.tensor([[1.5], [2.5]])), batch_of([1.0, 2.0]))
    assert found["prediction"].tolist() == [1.5, 2.5]
    assert "logits" not in found


def test_rows_are_those_of_the_tokenizer(tmp_path: Path) -> None:
    cfg = small(tmp_path, "rte", task__max_length=12)
    tokenizer = tiny_tokenizer()
    _, data = loaded(cfg, tokenizer)
    rows = rows_of(cfg, "train")
    assert len(data.train) == 40
    assert sorted(data.train.column_names) == ["attention_mask", "input_ids", "labels", "length", "token_type_ids"]
    for row, source in zip(data.train, rows, strict=True):
        expected = tokenizer(source["sentence1"], source["sentence2"], truncation=True, max_length=12)
        assert {name: row[name] for name in expected} == dict(expected)
        assert row["labels"] == source["label"]
        assert row["length"] == len(row["input_ids"]) <= 12
    assert max(data.train["length"]) == 12
    assert set(map(tuple, data.train["token_type_ids"])) != {(0,) * 12}  # the second text is told apart


def test_collate_pads_to_the_maximum_on_demand_and_never_beyond(tmp_path: Path) -> None:
    task, data = loaded(small(tmp_path, "stsb", train__padding="max_length", task__max_length=30))
    batch = task.collate([data.train[0]])
    assert batch["input_ids"].shape == (1, 30)
    assert batch["labels"].dtype == torch.float32
    task, data = loaded(small(tmp_path, "rte", task__max_length=13), tiny_tokenizer(limit=11))
    batch = task.collate([data.train[index] for index in range(8)])
    assert batch["input_ids"].shape == (8, 11)  # what the model takes, though 11 is no multiple of 8


@pytest.mark.parametrize("name", ["mnli", "squad", "xsum"])
def test_a_quick_look_takes_its_rows_with_all_their_windows(tmp_path: Path, name: str) -> None:
    """It cuts only what is evaluated. SQuAD counts rows, not windows; that a window knows its question finds them."""
    options = {"data__cache_dir": str(tmp_path / "cache"), "task__max_length": 96}
    options |= {"data__sample_rows": 8, "data__sample_validation_rows": 20}
    options |= {"task__stride": 16} if name == "squad" else {}
    families = [load_family(task_config(name, **options, eval__max_examples=limit)) for limit in (None, 6, 500)]
    everything, data, all_again = (family.load(byte_tokenizer()) for family in families)
    assert data.train[:] == everything.train[:]
    chosen = [0, 3, 6, 10, 13, 16]  # of 20, at equal distances: floor(i 20 / 6)
    for split, rows in data.evaluation.items():
        assert (data.provenance["rows"][split], everything.provenance["rows"][split]) == (6, 20)
        examples = chosen
        if name != "mnli":
            ids = [f"sample-validation-{number}" for number in chosen]
            assert list(dict.fromkeys(families[1].side[split]["id"])) == ids
            examples = [i for i, row in enumerate(families[0].side[split]["id"]) if row in ids]
        assert len(examples) > 6 if name == "squad" else len(examples) == 6
        assert rows[:] == everything.evaluation[split][examples]
        assert all_again.evaluation[split][:] == everything.evaluation[split][:]


@needs_real_data
@pytest.mark.parametrize("name", ["cola", "stsb"])
def test_real_data_load(tmp_path: Path, name: str) -> None:
    cfg = task_config(name, "local", data__dir=str(REAL_DATA), data__cache_dir=str(tmp_path))
    task, data = loaded(cfg)
    assert {"train": len(data.train)} | {split: len(rows) for split, rows in data.evaluation.items()} == cfg.task.rows
    assert data.train["labels"][:] == rows_of(cfg, "train")["label"][:]
    assert data.provenance["sha256"].keys() == {"train", "validation"}
    batch = task.collate([data.train[index] for index in range(32)])
    assert batch["input_ids"].shape[1] <= cfg.task.max_length
