"""Checkpoints of other versions: intact files whose entries do not fit the run that should resume from them."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_records import make
from tiny_runs import built

from adalora_repro.errors import InputError
from adalora_repro.records import run_record
from adalora_repro.training import checkpoint, folder
from adalora_repro.training import loop as training_loop

WORDS = (
    *("task=rte", "method=adalora", "budget=0.3M", "train.max_steps=6", "optim.lr=1e-2", "optim.warmup_steps=0"),
    *("method.schedule=absolute", "method.t_i=0", "method.t_f=1", "method.delta_t=1"),
)


@pytest.fixture(scope="module")
def loop(tmp_path_factory: pytest.TempPathFactory) -> training_loop.RunState:
    """After two steps."""
    run = built(tmp_path_factory.mktemp("run"), *WORDS)
    for _, batches in zip(range(2), training_loop.training_batches(run), strict=False):
        training_loop.step(run, batches)
    return run


Spoil = Callable[[dict[str, Any]], object]


def _weight_that_could_be_broadcast(state: dict[str, Any]) -> None:
    name = next(name for name, value in state["model"].items() if value.ndim > 1)
    state["model"][name] = state["model"][name][:1, :1].clone()


FOREIGN: dict[str, tuple[Spoil, str]] = {
    "format": (lambda state: state.update(format=2), "it is not of format 1"),
    "entry missing": (lambda state: state.pop("model"), "model"),
    "weight missing": (lambda state: state["model"].popitem(), "other names or shapes"),
    "weight smaller": (_weight_that_could_be_broadcast, "other names or shapes"),
    "weight of text": (lambda state: state["model"].update(dict.fromkeys(state["model"], "x")), "AttributeError"),
    "groups": (lambda state: state["optimizer"]["param_groups"].pop(), "parameter groups"),
    "mask": (lambda state: state["method"].update(mask=torch.ones(2)), "other layers"),
    "loop": (lambda state: state["loop"].pop("tokens"), "tokens"),
    "random numbers": (lambda state: state.update(rng=[{"cpu": torch.zeros(3)}]), "TypeError"),
}


def saved(loop: training_loop.RunState, folder: Path) -> dict[str, Any]:
    checkpoint.save(folder, loop.state_dict())
    return copy.deepcopy(loop.state_dict())


def test_the_peak_memory_is_that_of_all_attempts(loop: training_loop.RunState) -> None:
    loop.plan.folder.mkdir(parents=True)
    run_record.write(make(status="running", memory={"peak": 2.0**50, "of": "resident set"}), loop.plan.folder)
    for resumed in (True, False):
        record = folder.new_record(loop, resumed)
        folder.write_record(loop, record, "running")
        assert (record.memory["peak"] == 2.0**50) == resumed


@pytest.mark.parametrize(("spoil", "why"), FOREIGN.values(), ids=FOREIGN)
def test_another_version_is_refused_with_the_reason(
    loop: training_loop.RunState, tmp_path: Path, spoil: Spoil, why: str
) -> None:
    state = saved(loop, tmp_path)
    spoil(state)
    checkpoint.save(tmp_path, state)  # the valid one is now the previous one
    older, newest = (tmp_path / name for name in reversed(checkpoint.NAMES))
    read, (problem,) = checkpoint.load(tmp_path, loop.plan.key["hash"], loop.load_state_dict)
    assert read["t"] == loop.t == 2
    assert problem.startswith(f"{newest} is intact, but from another version of adalora-repro (")
    assert why in problem
    older.write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"is intact, but from another version.*or start over with force=true"):
        checkpoint.load(tmp_path, loop.plan.key["hash"], loop.load_state_dict)


def test_a_checkpoint_that_cannot_be_read_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "checkpoint.pt").mkdir()  # also root cannot read it
    with pytest.raises(InputError, match=r"checkpoint\.pt cannot be read \(Is a directory\) and stays as it is"):
        checkpoint.load(tmp_path, "0")


@pytest.mark.parametrize("content", [[1], {"t": 5}, torch.nn.Linear(2, 2)], ids=["list", "no hash", "module"])
def test_a_whole_file_that_is_no_state_is_refused(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "checkpoint.pt")
    with pytest.raises(InputError, match=r"checkpoint\.pt is intact, but from another version"):
        checkpoint.load(tmp_path, "0")
