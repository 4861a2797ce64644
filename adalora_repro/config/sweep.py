"""What a sweep runs: lists of values -> cells of a table -> jobs -> stages. Plain functions, without Hydra.

A job is one run by its words: setting -> value, both as typed. A cell is what jobs share that differ in learning rate
and seed alone.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adalora_repro.config.catalog import choices_of, sizes_of
from adalora_repro.config.resolve import record_in
from adalora_repro.config.words import lr_text
from adalora_repro.errors import InputError, one_of
from adalora_repro.records import lock
from adalora_repro.records.run_record import RECORD_NAME
from adalora_repro.records.selection import at_edge, run_of, select
from adalora_repro.settings import setting

AXES = ("task", "method", "budget")  # of a cell: what the command line gives for them restricts, the rest it replaces
LR, SEED = "optim.lr", "seed"
CHOSEN, WIDENED = "chosen", "widened"  # values of optim.lr in a stage, derived from the earlier stages
MOST_JOBS = 100_000

Job = dict[str, str]  # key as typed (``+`` and all) -> value as typed
Values = dict[str, list[str]]
Words = tuple[str, ...]


@dataclass
class SweeperConfig:
    """The types of conf/hydra/sweeper/cells.yaml."""

    _target_: str = "hydra_plugins.adalora_sweeper.CellSweeper"
    max_batch_size: int | None = setting(None, minimum=1)
    params: dict[str, Any] = field(default_factory=dict)
    cells: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    stages: list[Any] = field(default_factory=list)  # of mappings; OmegaConf's error for such a type names no setting


@dataclass
class RayConfig:
    """The types of conf/hydra/launcher/ray.yaml."""

    _target_: str
    address: str
    num_gpus: float
    num_cpus: float
    max_retries: int


def words_of(job: Job) -> Words:
    return tuple(f"{key}={value}" for key, value in job.items())


def cell_of(job: Job) -> Words:
    return tuple(sorted(words_of({key: value for key, value in job.items() if key not in (LR, SEED)})))


def name_of(cell: Words) -> str:
    """ "cola lora 0.3M", with the protocol where it is given"""
    job = dict(word.split("=", 1) for word in cell)
    return " ".join(job[name] for name in (*AXES, "protocol") if name in job)


def label_of(key: Mapping[str, Any], job: Job, jobs: Sequence[Job]) -> str:
    """ "cola lora 0.3M lr 1e-3 seed 0": a run by the key of its record, and what else differs among ``jobs``."""
    budget = [] if key["budget"] == key["method"] else [key["budget"]]  # of a method of one size it is the method
    shown = (*AXES, LR, SEED)
    others = [f"{name}={job[name]}" for name in job if name not in shown and len({one.get(name) for one in jobs}) > 1]
    return " ".join([key["task"], key["method"], *budget, f"lr {lr_text(key['lr'])} seed {key['seed']}", *others])


# -- lists -> jobs -------------------------------------------------------------------------------------------------


def product(lists: Values) -> list[Job]:
    """Every combination.

    Raises:
        InputError: more than anybody can mean; making their list alone would take minutes.
    """
    if math.prod(map(len, lists.values())) > MOST_JOBS:
        longest = max(lists, key=lambda key: len(lists[key]))
        raise InputError(f"more than {MOST_JOBS:,} runs in one sweep; the longest list is {longest}")
    return [dict(zip(lists, values, strict=True)) for values in itertools.product(*lists.values())]


def jobs_of(lists: Values, tables: Mapping[str, Sequence[Values]]) -> list[Job]:
    """Every combination: without tables of all lists, with tables of each cell and the lists that are no axis."""
    if not tables:
        return product(lists)
    axes = {key.lstrip("+"): values for key, values in lists.items() if key.lstrip("+") in AXES}
    rest = {key: values for key, values in lists.items() if key.lstrip("+") not in AXES}
    replaced = {key.lstrip("+") for key in rest}
    jobs: dict[Words, Job] = {}  # cells that differ only in what is replaced become the same job
    for cell in cells_of(tables, axes):
        own = {key: [value] for key, value in cell.items() if key not in replaced}
        jobs |= {words_of(job): job for job in product(own | rest)}
    return list(jobs.values())


def cells_of(tables: Mapping[str, Sequence[Values]], axes: Values) -> list[Job]:
    """The cells of these tables that have one of the values for each axis given.

    A method that no cell has gets cells of its own (``cells_for``).

    Raises:
        InputError: a value that no cell has, or no cell with all of them.
    """
    cells: list[Job] = []
    for products in tables.values():
        cells += [cell for lists in products for cell in product(lists) if cell not in cells]
    names = ", ".join(tables)
    for method in axes.get("method", []):
        if method in choices_of("method") and all(cell.get("method") != method for cell in cells):
            cells += cells_for(method, cells)
    for axis, wanted in axes.items():
        valid = list(dict.fromkeys(cell[axis] for cell in cells if axis in cell))
        for value in wanted:
            if value not in valid:
                raise one_of(f"{axis} in {names}", value, valid)
    left = [cell for cell in cells if all(cell.get(axis) in wanted for axis, wanted in axes.items())]
    if not left:
        typed = " ".join(f"{axis}={','.join(wanted)}" for axis, wanted in axes.items())
        of_tasks = [cell for cell in cells if cell.get("task") in axes.get("task", [cell.get("task")])]
        near = dict.fromkeys(name_of(words_of(cell)) for cell in of_tasks)
        raise InputError(f"no cell of {names} has {typed}; valid: {'; '.join(near)}")
    return left


def cells_for(method: str, cells: Sequence[Job]) -> list[Job]:
    """The cells with ``method`` instead of their methods, at each budget of a task for which its file has a size."""
    sizes = sizes_of(method)
    own: list[Job] = []
    for cell in cells:
        if sizes is None:
            new = {key: value for key, value in cell.items() if key != "budget"} | {"method": method}
        elif cell.get("budget") in sizes:
            new = cell | {"method": method}
        else:
            continue
        own += [new] if new not in own else []
    return own


# -- stages --------------------------------------------------------------------------------------------------------


def check_stages(stages: Sequence[Values], given: Values) -> None:
    """Values typed for a setting of the stages restrict them, like a cell's axes.

    Raises:
        InputError: a value that no stage has.
    """
    for key in {key for stage in stages for key in stage} - {LR}:
        valid = list(dict.fromkeys(value for stage in stages for value in stage.get(key, [])))
        for value in given.get(key, []):
            if value not in valid:
                raise one_of(f"{key} in the stages", value, valid)


def wanted(jobs: Sequence[Job], stage: Values, given: Values) -> list[Job]:
    """The jobs of a stage that the command line asks for: a value typed for one of its settings restricts it."""
    names = stage.keys() - {LR}
    return [job for job in jobs if all(job[name] in given.get(name, [job[name]]) for name in names)]


def state_of(folder: Path) -> str:
    """``held`` while a process trains there, else the status of the run's record; ``none`` without a readable one."""
    record = record_in(folder)
    return "held" if lock.held(folder) else record.status if record else "none"


@dataclass(frozen=True)
class Choice:
    """The learning rate of a cell, by the rule of ``records.selection``.

    Attributes:
        lr: as typed; None where there is nothing to choose from.
        why: the choice, or why there is none, in one line.
        beyond: the next rate beyond it, if it is the smallest or the largest of its grid.
    """

    lr: str | None
    why: str
    beyond: str | None = None


def choose(tried: Sequence[tuple[Job, Path]]) -> Choice:
    """The choice among the runs of a cell, each with its folder; none while one is in training or interrupted."""
    tried = list({folder: (job, folder) for job, folder in tried}.values())  # words may differ and mean one run
    runs = []
    typed: dict[float, str] = {}
    for job, folder in tried:
        record = record_in(folder)
        if record is not None and record.status == "ok" and record.final is not None:
            lr = float(record.key["lr"])
            runs.append(run_of(folder / RECORD_NAME, record))
            typed[lr] = job.get(LR, repr(lr))
    if going := sum(state_of(folder) in ("held", "running", "cancelled") for _, folder in tried):
        return Choice(None, f"left out, in training or interrupted: {going} of the {len(tried)} runs to choose from")
    if not runs:
        return Choice(None, f"left out, none of the {len(tried)} runs to choose from is finished")
    best = select(runs)
    split = " on the held-out split" * best.held_out
    why = f"{LR}={lr_text(best.lr)}, the best of {len(best.by_lr)}{split} ({len(runs)} of {len(tried)} runs finished)"
    grid = sorted({float(job[LR]) for job, _ in tried if LR in job})
    if not at_edge(best.lr, grid):
        return Choice(typed[best.lr], why)
    return Choice(typed[best.lr], f"{why}, the edge of its grid", lr_text(next_rate(best.lr, grid)))


def derived(
    rate: str, jobs: Sequence[Job], earlier: Sequence[tuple[Job, Path]]
) -> tuple[list[Job], dict[Words, Choice]]:
    """``jobs`` at the rate that ``chosen`` or ``widened`` stands for in their cell, and the choice of each cell.

    ``widened`` leaves out the cells whose best rate lies inside their grid; both leave out those without a choice.

    Args:
        earlier: the runs to choose among, each with its folder.
    """
    choices: dict[Words, Choice] = {}
    made = []
    for job in jobs:
        cell = cell_of(job)
        if cell not in choices:
            choices[cell] = choose([run for run in earlier if cell_of(run[0]) == cell])
        lr = choices[cell].lr if rate == CHOSEN else choices[cell].beyond
        made += [] if lr is None else [job | {LR: lr}]
    return made, choices


def next_rate(edge: float, grid: Sequence[float]) -> float:
    """One rate beyond an edge of a grid, at the ratio between the edge and its neighbour; rounded to two digits, or to
    as many as tell it from the edge."""
    neighbour = min((rate for rate in grid if rate != edge), key=lambda rate: abs(math.log(rate / edge)))
    rates = [float(f"{edge * edge / neighbour:.{digits}e}") for digits in range(1, 7)]
    return next((rate for rate in rates if (rate - edge) * (edge - neighbour) > 0), rates[-1])
