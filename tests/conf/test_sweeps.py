"""The files of sweeps/ against the paper's tables, and what the command line makes of them."""

import importlib
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.types import HydraContext
from omegaconf import OmegaConf

from adalora_repro.config import sweep as sweeps
from adalora_repro.config.catalog import resource
from adalora_repro.config.plan import Plan
from adalora_repro.config.sweep import Job
from adalora_repro.errors import InputError
from adalora_repro.reports.spec import paper_rows
from adalora_repro.reports.tables import table15

SWEEPS = sorted(resource("sweeps").glob("*.yaml"))
CELLS = {"table1": 96, "table2": 34, "table3": 18, "table4": 36, "table5": 36, "table14": 16}
NO_FILES = ("data=sample", "data.sample_rows=64")

pytestmark = pytest.mark.usefixtures("hydra")


class Recorder:
    """A launcher that launches nothing."""

    def __init__(self) -> None:
        self.words: list[list[str]] = []
        self.batches: list[int] = []

    def launch(self, jobs: Any, initial_job_idx: int) -> list[JobReturn]:
        assert initial_job_idx == len(self.words)
        self.batches.append(len(jobs))
        self.words += [list(words) for words in jobs]
        return [JobReturn(_return_value=("done", 0), status=JobStatus.COMPLETED) for _ in jobs]


def sweeper(*names: str) -> Any:
    """The sweeper that ``+sweep=[names]`` makes."""
    from hydra_plugins.adalora_sweeper import CellSweeper

    merged = OmegaConf.merge(*(OmegaConf.load(resource("sweeps") / f"{name}.yaml") for name in names)).hydra.sweeper
    made = CellSweeper(None, merged.get("params", {}), merged.get("cells", {}), merged.get("stages", []))
    loader = GlobalHydra.instance().hydra.config_loader
    made.hydra_context = HydraContext(config_loader=loader, callbacks=None)
    made.config = compose("config", return_hydra_config=True)
    made.launcher = Recorder()
    return made


def jobs_of(made: Any, *words: str) -> list[Job]:
    """The jobs of a sweep without stages, or of its first stage as it is without it."""
    tables = {table: [made.values(lists) for lists in cells] for table, cells in made.cells.items()}
    return sweeps.jobs_of(made.values(made.params) | made.values(list(words)), tables)


def plans_of(made: Any, jobs: list[Job]) -> dict[sweeps.Words, Plan | None]:
    made.plan(jobs)
    return {sweeps.words_of(job): made.plans.get(sweeps.words_of(job)) for job in jobs}


def launched(names: str, *words: str, folder: Path) -> list[dict[str, str]]:
    """What reaches the launcher of ``adalora-run -m '+sweep=[names]' words``."""
    made = sweeper(*names.split(","))
    made.config.hydra.sweep.dir = str(folder / "sweep")
    made.sweep([f"+sweep=[{names}]", f"results.dir={folder}", *words])
    jobs = [dict(word.split("=", 1) for word in job) for job in made.launcher.words]
    assert all(job.pop("results.dir") == str(folder) for job in jobs)
    return jobs


def key_of(job: dict[str, str]) -> tuple[str, str, str]:
    return job["task"], job["method"], job.get("budget", job["method"])


def paper_cells(table: str) -> list[tuple[str, str, str]]:
    """(task, method, budget) of every row and column of the paper's CSV that has a number."""
    spec = importlib.import_module(f"adalora_repro.reports.tables.{table}").SPEC
    rows = paper_rows(spec.paper_file)
    return [
        (column.task, row["method"], row["budget"])
        for row in rows
        for column in spec.columns
        if all(row[name] for name in column.paper)
    ]


# The files


@pytest.mark.parametrize("table", CELLS)
def test_a_table_s_file_has_the_cells_of_the_paper(table: str, tmp_path: Path) -> None:
    made = sweeper(table)
    jobs = jobs_of(made)
    found = [key_of(job) for job in jobs]
    assert len(found) == len(set(found)) == CELLS[table]
    assert set(found) == set(paper_cells(table))
    assert all("budget" not in job for job in jobs if job["method"] in ("full", "bitfit"))
    backbone = importlib.import_module(f"adalora_repro.reports.tables.{table}").SPEC.backbone
    one_task = [job for job in jobs if job["task"] in ("cola", "squad", "xsum")]
    for job, plan in zip(one_task, plans_of(made, one_task).values(), strict=True):
        assert plan is not None, job
        assert (plan.key["task"], plan.key["method"], plan.key["budget"]) == key_of(job)
        assert plan.key["backbone"] == backbone


def test_table15_is_a_measurement_of_each_pair(tmp_path: Path) -> None:
    jobs = launched("table15", *NO_FILES, folder=tmp_path)
    assert all(job["measure"] == "cost" for job in jobs)
    rows = table15.paper_frame().query(f"method != '{table15.REFERENCE}'")
    pairs = list(rows[["task", "method", "budget"]].itertuples(index=False, name=None))
    assert [key_of(job) for job in jobs] == pairs


def test_the_controls_are_the_rows_of_their_table() -> None:
    from adalora_repro.reports.tables.controls import SPEC

    found = [key_of(job) for job in jobs_of(sweeper("controls"))]
    methods = [row["method"] for row in paper_rows(SPEC.paper_file)]
    assert set(SPEC.methods) == {*methods, "lora_rank_pattern"}  # which needs another run first
    assert sorted(found) == sorted((column.task, method, "0.3M") for column in SPEC.columns for method in methods)


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_sweep_reaches_the_sweeper_whole(path: Path) -> None:
    made = compose("config", return_hydra_config=True, overrides=[f"+sweep={path.stem}"]).hydra.sweeper
    own = OmegaConf.load(path).hydra.sweeper
    assert {key: made[key] for key in own} == own
    assert made._target_ == "hydra_plugins.adalora_sweeper.CellSweeper"
    assert {key for key in ("params", "cells", "stages") if made[key]} == set(own)


APPENDIX_C_2 = {8e-5, 5e-5, 3e-5, 1e-4, 3e-4, 5e-4, 8e-4, 1e-3}


def grids() -> dict[str, list[float]]:
    """The learning rates of every sweep with a grid."""
    found = {path.stem: OmegaConf.load(path).hydra.sweeper.get("params") or {} for path in SWEEPS}
    return {
        name: [float(lr) for lr in params["optim.lr"].split(",")]
        for name, params in found.items()
        if "optim.lr" in params
    }


def test_every_recipe_s_learning_rate_is_in_every_grid() -> None:
    """AdaLoRA's published rate is always among those tried; a grid has the same rates for every method and task."""
    assert {"lr", "lr_wide", "stages"} <= set(grids())
    conf = resource("conf")
    recipes = {
        path: lr
        for folder in ("tuned", "script")
        for path in sorted((conf / folder).glob("*.yaml"))
        if (lr := OmegaConf.select(OmegaConf.load(path), "optim.lr")) is not None
    }
    assert len(recipes) >= 15
    for path, lr in recipes.items():
        for name, grid in grids().items():
            assert float(lr) in grid, f"{path.name}: {lr} is not in sweeps/{name}.yaml"


def test_grids_and_seeds_are_the_paper_s() -> None:
    of_tables = {float(row["learning_rate"]) for row in paper_rows("table8_10_13_hyperparameters.csv")}
    assert {1.2e-3, 2.2e-3} == of_tables - APPENDIX_C_2
    for grid in grids().values():
        assert grid == sorted(set(grid))
    assert set(grids()["lr"]) == set(grids()["stages"]) == APPENDIX_C_2 | of_tables
    wide = grids()["lr_wide"]
    assert set(grids()["lr"]) <= set(wide)
    assert sum(lr < 3e-5 for lr in wide) >= 2
    assert sum(lr > 2.2e-3 for lr in wide) >= 2
    assert OmegaConf.load(resource("sweeps") / "seeds.yaml").hydra.sweeper.params.seed == "0,1,2,3,4"
    first, second = OmegaConf.load(resource("sweeps") / "stages.yaml").hydra.sweeper.stages
    assert f"{first.seed},{second.seed}" == "0,1,2,3,4"
    assert second["optim.lr"] == "chosen"


COMMANDS = [
    (path.stem, match[1])
    for path in SWEEPS
    for match in re.finditer(r"^#   (adalora-run .*)$", path.read_text(encoding="utf-8"), re.M)
]


@pytest.mark.parametrize(("name", "command"), COMMANDS, ids=[command for _, command in COMMANDS])
def test_every_command_in_a_header_is_a_sweep(name: str, command: str, tmp_path: Path) -> None:
    program, multirun, sweep, *words = shlex.split(command)
    assert (program, multirun) == ("adalora-run", "-m")
    names = sweep.removeprefix("+sweep=").strip("[]")
    assert name in names.split(",")
    made = sweeper(*names.split(","))
    jobs = jobs_of(made, *words)
    assert len({tuple(job.items()) for job in jobs}) == len(jobs) > 1
    first = jobs[:: max(1, len(jobs) // 5)][:5]
    hashes = {plan.key["hash"] for plan in plans_of(made, first).values() if plan}
    assert len(hashes) == len(first)


# What the command line makes of them


@pytest.mark.parametrize(("launcher", "batches"), [("basic", [1] * 5), ("slurm", [2, 2, 1])])
def test_jobs_are_launched_in_batches_or_one_by_one(launcher: str, batches: list[int], tmp_path: Path) -> None:
    made = sweeper("seeds")
    made.config.hydra.sweep.dir = str(tmp_path)
    made.config.hydra.runtime.choices["hydra/launcher"] = launcher
    made.batch_size = 2
    made.sweep(["task=cola", f"results.dir={tmp_path}", *NO_FILES])
    assert made.launcher.batches == batches
    assert made.ledger.summary().splitlines()[-1] == "sweep: 5 done"


def test_a_plus_replaces_a_learning_rate_and_a_file_s_null_is_one() -> None:
    made = sweeper("lr")
    assert made.values(["++optim.lr=1e-3", "++seed=0,1"]) == {"optim.lr": ["0.001"], "seed": ["0", "1"]}
    assert made.values({"train.eval_steps": None}) == {"train.eval_steps": ["null"]}


def test_what_no_sweep_can_mean_is_refused(tmp_path: Path) -> None:
    made = sweeper("lr")
    with pytest.raises(InputError, match=re.escape("'+sweep=[lr,seeds]'")):
        made.sweep(["+sweep=lr,seeds", "task=cola"])
    with pytest.raises(HydraException, match="seed"):
        made.sweep(["seed=interval(0,1)", "task=cola"])
    for words in (["seed=range(0,1000000000)"], ["seed=range(0,1000)", "data.sample_seed=range(0,1000)"]):
        with pytest.raises(InputError, match="more than 100,000 runs in one sweep"):
            made.sweep(["task=cola", *words])
    assert made.launcher.words == []
    for words, problem in ((["task=cola", "methd=lora"], "methd"), (["task=cola,colaa"], "colaa")):
        with pytest.raises(InputError, match=problem):  # before any of its runs begins
            launched("seeds", *words, *NO_FILES, folder=tmp_path)
    assert list(tmp_path.iterdir()) == []
    for setting in ("hydra.sweeper.cells.mine=3", "hydra.sweeper.stages=a", "hydra.sweeper.max_batch_size=a"):
        with pytest.raises(HydraException):
            compose("config", [setting])
