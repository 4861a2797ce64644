"""An evaluation: predictions are made while a task asks for them, each once, and few are alive at a time."""

import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from adalora_repro.tasks.base import Evaluation
from adalora_repro.training.distributed import Processes
from adalora_repro.training.evaluate import evaluate

Rows = list[dict[str, Any]]
QUIET: Any = SimpleNamespace(evaluating=lambda *_: None)


class Counting:
    """A task whose predictions are the numbers of its rows; it notes what was made when."""

    def __init__(self) -> None:
        self.alive = self.most = self.made = self.given = 0
        self.ahead: list[int] = []  # predictions made and not yet given, at every batch given
        self.found: dict[str, list[tuple[list[int], list[int]]]] = {}
        self.modes: list[tuple[bool, bool]] = []
        self.inside = False

    def collate(self, rows: Rows) -> dict[str, Tensor]:
        return {"number": torch.tensor([row["number"] for row in rows])}

    def predict(self, model: torch.nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        self.modes.append((model.training, self.inside and torch.is_inference_mode_enabled()))
        prediction = batch["number"].clone()
        self.made += 1
        self.alive += 1
        self.most = max(self.most, self.alive)
        weakref.finalize(prediction, self._died)
        return {"number": prediction}

    def _died(self) -> None:
        self.alive -= 1

    def metrics(self, predictions: Mapping[str, Iterable[dict[str, Any]]]) -> Evaluation:
        for split, batches in predictions.items():
            assert self.made == self.given, "made before it was asked for"
            found = self.found.setdefault(split, [])
            for batch in batches:
                self.given += 1
                self.ahead.append(self.made - self.given)
                found.append((list(batch["index"]), batch["number"].tolist()))
                del batch
        return Evaluation({"batches": float(self.given)})


def loop_of(task: Counting, splits: dict[str, list[int]], size: int) -> Any:
    """As much of a Loop as an evaluation needs; ``splits`` are lengths of rows."""

    @contextmanager
    def masked() -> Iterator[None]:
        task.inside = True
        yield
        task.inside = False

    model = torch.nn.Linear(1, 1)
    cfg = SimpleNamespace(train=SimpleNamespace(num_workers=0), eval=SimpleNamespace(batch_size=size))
    rows = {
        name: Dataset.from_dict({"number": list(range(len(lengths))), "length": lengths})
        for name, lengths in splits.items()
    }
    return SimpleNamespace(
        plan=SimpleNamespace(cfg=cfg),
        model=model,
        method=SimpleNamespace(masked=masked),
        products=nullcontext,
        device=torch.device("cpu"),
        check_weights=lambda: None,
        task=task,
        data=SimpleNamespace(evaluation=rows),
        processes=Processes(
            SimpleNamespace(num_processes=1, process_index=0, device=torch.device("cpu"), autocast=nullcontext)
        ),
    )


@settings(max_examples=30)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(1, 9))
def test_each_example_is_predicted_once_the_longest_first(lengths: list[int], size: int) -> None:
    task = Counting()
    evaluate(loop_of(task, {"a": lengths, "b": lengths[::-1]}, size), QUIET)
    for split, own in (("a", lengths), ("b", lengths[::-1])):
        numbers = [number for index, _ in task.found[split] for number in index]
        assert sorted(numbers) == list(range(len(own)))
        assert all(index == predicted for index, predicted in task.found[split])  # index names the rows predicted
        seen = [own[number] for number in numbers]
        assert seen == sorted(seen, reverse=True)
        assert {len(index) for index, _ in task.found[split][:-1]} <= {size}
    assert task.given == task.made == 2 * -(-len(lengths) // size)


def test_at_most_two_batches_of_predictions_are_alive() -> None:
    task = Counting()
    found = evaluate(loop_of(task, {"a": [3] * 101, "b": [5] * 7}, 10), QUIET)
    assert found == Evaluation({"batches": 12.0})
    assert task.most == 2
    assert task.alive == 0
    # one batch ahead, so that a device has work while the host looks at the one before; none after the last
    assert task.ahead == [1] * 10 + [0] + [0]


@pytest.mark.parametrize("training", [True, False])
def test_predictions_are_of_the_masked_model_in_evaluation_mode_without_gradients(training: bool) -> None:
    task = Counting()
    loop = loop_of(task, {"a": [3] * 5}, 2)
    loop.model.train(training)
    evaluate(loop, QUIET)
    assert task.modes == [(False, True)] * 3
    assert not task.inside
