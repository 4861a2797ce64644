"""The sweeper behind ``adalora-run -m``: lists as Hydra has them, the cells of a table, stages.

Hydra takes sweepers from the namespace ``hydra_plugins`` alone. What is finished is passed over before any job is
launched, whatever the launcher; only the other runs reach it.
"""

from __future__ import annotations

import copy
import itertools
import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.utils import JobStatus
from hydra.errors import HydraException
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from adalora_repro.cli.hydra_errors import explain, file_problems
from adalora_repro.cli.run import RESTARTED, SKIPPED
from adalora_repro.config import resolve as planning
from adalora_repro.config.catalog import GROUPS
from adalora_repro.config.plan import Plan
from adalora_repro.config.schema import LAUNCHES
from adalora_repro.config.words import word
from adalora_repro.errors import EXIT_FAILED, EXIT_OK, InputError, one_of
from adalora_repro.records import lock, run_record
from adalora_repro.records.selection import at_edge, run_of, select
from adalora_repro.reports.text import lr_text
from adalora_repro.training.distributed import launched
from hydra_plugins.adalora_launcher import ArrayLauncher

AXES = ("task", "method", "budget")  # of a cell: what the command line gives for them restricts, the rest it replaces
MOST_JOBS = 100_000
LR, SEED = "optim.lr", "seed"
CHOSEN, WIDENED = "chosen", "widened"  # values of optim.lr in a stage, derived from the earlier stages
BASIC = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"

Job = dict[str, str]  # key as typed (``+`` and all) -> value as typed
Values = dict[str, list[str]]


class CellSweeper(BasicSweeper):
    """See conf/hydra/sweeper/cells.yaml. What becomes of the runs goes into the task function's ``ledger`` (run.py)."""

    def __init__(
        self,
        max_batch_size: int | None = None,
        params: Mapping[str, Any] | None = None,
        cells: Mapping[str, Any] | None = None,
        stages: Sequence[Any] | None = None,
    ) -> None:
        super().__init__(max_batch_size, params or {})
        self.cells = cells or {}
        self.stages = stages or []
        self.ledger: Any = None
        self.detached = False
        self.planned: dict[tuple[str, ...], Plan] = {}  # the runs whose configuration is sound
        self.refusals: dict[tuple[str, ...], str] = {}  # the others
        self.numbers: dict[tuple[str, ...], int] = {}  # of the jobs given to the launcher, as in the ledger

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        if config.launch not in LAUNCHES:
            raise one_of("launch", config.launch, LAUNCHES)
        if config.dry_run:  # a plan needs no cluster and leaves nothing on disk
            config = config.copy()
            OmegaConf.update(config, "hydra.launcher", {"_target_": BASIC}, force_add=True, merge=False)
            OmegaConf.update(config, "hydra.sweep", {"dir": ".", "subdir": "."})
            config.hydra.overrides.hydra += ["hydra.sweep.dir=.", "hydra.sweep.subdir=."]  # of each job
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        self.ledger = vars(task_function)["ledger"]
        self.detached = config.launch == "detach" and not config.dry_run
        if self.detached and not isinstance(self.launcher, ArrayLauncher):
            raise InputError("launch=detach leaves the runs to a cluster: add hydra/launcher=slurm")

    def sweep(self, arguments: list[str]) -> None:
        """Runs everything; the outcomes are in the ledger.

        Raises:
            InputError: nothing is left of the cells or stages, a word has no meaning in a sweep, or the configuration
                of a run cannot be composed; no job has begun.
        """
        self.ledger.begun = True
        self.check_settings()
        given = self.values([f"{key}={value}" for key, value in self.params.items()] + arguments)
        if not self.stages:
            self.launch(self.jobs(given))
            return
        stages = [self.values([f"{key}={value}" for key, value in stage.items()]) for stage in self.stages]
        check_stages(stages, given)
        earlier: list[Job] = []
        for number, stage in enumerate(stages, 1):

            def wanted(jobs: Sequence[Job], settings: Values = stage) -> list[Job]:
                """The jobs that the command line asks for: a value typed for a stage's setting restricts the stage."""
                names = settings.keys() - {LR}
                return [job for job in jobs if all(job[name] in given.get(name, [job[name]]) for name in names)]

            every = self.jobs(given | stage)
            left: list[Job] = []
            if stage.get(LR) == [CHOSEN]:
                cells, every = wanted(every), []
                for ready in self.once_free(cells, earlier, number):
                    chosen = self.at_chosen_lr(ready, earlier, number)
                    left += self.launch(chosen)
                    every += chosen
            elif stage.get(LR) == [WIDENED]:
                cells, every = every, []
                for ready in self.once_free(cells, earlier, number):
                    beyond = self.beyond_edge(ready, earlier, number)
                    left += self.launch(wanted(beyond))
                    every += beyond
            else:
                left = self.launch(wanted(every))
            if self.detached and not all(map(self.has_failed, left)) and number < len(stages):
                print(f"stage {number} of {len(stages)}: when its runs have ended, repeat the command for the next")
                return
            earlier += every

    def check_settings(self) -> None:
        """Checks the types of ``hydra.sweeper``, a node for which Hydra has no schema.

        Raises:
            InputError: a type is wrong; the message names the setting.
        """
        size = self.max_batch_size
        if size is not None and (not isinstance(size, int) or size < 1):
            raise InputError(f"hydra.sweeper.max_batch_size must be positive or null, not {size}")
        if not isinstance(self.params, Mapping):
            raise InputError("hydra.sweeper.params must map a setting to its values")
        if not isinstance(self.cells, Mapping) or not all(map(is_list_of_settings, self.cells.values())):
            raise InputError("hydra.sweeper.cells must map a table to a list of settings and their values")
        if not is_list_of_settings(self.stages):
            raise InputError("hydra.sweeper.stages must be a list of settings and their values")

    # -- lists -> jobs ---------------------------------------------------------------------------------------------

    def parse(self, words: Sequence[str]) -> list[Override]:
        assert self.hydra_context is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        return list(parser.parse_overrides(list(words)))

    def values(self, words: Sequence[str]) -> Values:
        """Key -> values in the order given; the last word for a key wins."""
        found: Values = {}
        for override in self.parse(words):
            key = override.get_key_element()
            if not override.is_sweep_override():
                found[key] = [override.get_value_element_as_str()]
            elif not override.is_discrete_sweep():
                raise HydraException(f"{override.input_line}: a range without steps is no list of runs")
            else:
                found[key] = list(itertools.islice(override.sweep_string_iterator(), MOST_JOBS + 1))
            if key.lstrip("+") == "sweep":
                if override.is_sweep_override():
                    raise InputError(f"several sweeps in one are a list: '+sweep=[{','.join(found[key])}]'")
                del found[key]  # what it says is here already
            if key.lstrip("+") == "results.dir" and override.is_sweep_override():
                name = word("results.dir", override.input_line.partition("=")[2])
                raise InputError(f"results.dir must be one for all runs; put a name with a comma in quotes: {name}")
            if key == "launch":
                if override.is_sweep_override():
                    raise InputError(f"launch is one for all runs: launch={found[key][0]}")
                del found[key]  # of the sweep, not of its runs
        return found

    def jobs(self, lists: Values) -> list[Job]:
        """Every combination: without cells of all lists, with cells of each cell and the lists that are no axis."""
        if not self.cells:
            return product(lists)
        restrictions = {key.lstrip("+"): values for key, values in lists.items() if key.lstrip("+") in AXES}
        rest = {key: values for key, values in lists.items() if key.lstrip("+") not in AXES}
        replaced = {key.lstrip("+") for key in rest}
        jobs: dict[tuple[str, ...], Job] = {}  # cells that differ only in what is replaced become the same job
        for cell in self.chosen_cells(restrictions):
            own = {key: [value] for key, value in cell.items() if key not in replaced}
            jobs |= {words_of(job): job for job in product(own | rest)}
        return list(jobs.values())

    def chosen_cells(self, restrictions: Values) -> list[Job]:
        """The cells that have one of the values for each axis given."""
        cells: list[Job] = []
        for products in self.cells.values():
            for lists in products:
                words = [f"{key}={value}" for key, value in lists.items()]
                cells += [cell for cell in product(self.values(words)) if cell not in cells]
        tables = ", ".join(self.cells)
        for axis, wanted in restrictions.items():
            valid = list(dict.fromkeys(cell[axis] for cell in cells if axis in cell))
            for value in wanted:
                if value not in valid:
                    raise one_of(f"{axis} in {tables}", value, valid)
        left = [cell for cell in cells if all(cell.get(axis) in wanted for axis, wanted in restrictions.items())]
        if not left:
            said = " ".join(f"{axis}={','.join(wanted)}" for axis, wanted in restrictions.items())
            tasks = restrictions.get("task", [cell["task"] for cell in cells])
            raise InputError(f"no cell of {tables} has {said}; valid: {sizes_of(cells, tasks)}")
        return left

    # -- jobs -> runs ----------------------------------------------------------------------------------------------

    def launch(self, jobs: Sequence[Job]) -> list[Job]:
        """Passes over what is finished, gives the rest to the launcher and returns it."""
        assert self.config is not None
        assert self.launcher is not None
        left = self.unfinished(jobs)
        if not left:
            return left
        if isinstance(self.launcher, ArrayLauncher):
            self.launcher.plans, self.launcher.refusals = self.planned, self.refusals
        if not self.config.dry_run:
            folder = Path(self.config.hydra.sweep.dir)
            folder.mkdir(parents=True, exist_ok=True)
            OmegaConf.save(self.config, folder / "multirun.yaml")
        first, self.ledger.jobs = self.ledger.jobs, self.ledger.jobs + len(left)
        self.numbers |= {words_of(job): number for number, job in enumerate(left, first)}
        size = self.max_batch_size or len(left)
        for start in range(0, len(left), size):
            batch = [words_of(job) for job in left[start : start + size]]
            for number, done in enumerate(self.launcher.launch(batch, first + start), first + start):
                if done.status == JobStatus.COMPLETED:
                    self.ledger.outcomes.setdefault(number, done.return_value)
                else:  # in a process of the launcher's: here a job keeps its errors to itself
                    self.ledger.outcomes.setdefault(number, ("failed", EXIT_FAILED))
        return left

    def has_failed(self, job: Job) -> bool:
        """Whether the run ended without success, or cannot begin: no reason for a next stage to wait."""
        plan = self.planned.get(words_of(job))
        try:
            return plan is None or run_record.read(plan.folder / run_record.RECORD_NAME).status == "failed"
        except (FileNotFoundError, run_record.RecordError):
            return False

    def unfinished(self, jobs: Sequence[Job]) -> list[Job]:
        """The jobs that remain, in their order; every one has been composed, as the launcher will do again."""
        done = set()
        for job, plan in self.plans(jobs):
            if plan is None:
                continue
            self.planned[words_of(job)] = plan
            try:
                # several processes look together, when they get to it: here each would see another moment
                look = launched()[1] == 1 and not plan.cfg.force and not plan.cfg.dry_run
                score = planning.finished(plan) if look else None
            except InputError:
                continue  # the job says so
            if score:
                done.add(words_of(job))
                print(planning.already_done(plan, score))
        self.ledger.already += len(done)
        return [job for job in jobs if words_of(job) not in done]

    def plans(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, Plan | None]]:
        """Each job with its plan, None where the run itself will be refused.

        Hydra takes a tenth of a second to compose a job, ``resolve`` a fifth of that. Jobs that differ in plain values
        alone are composed once and the values set, as Hydra sets them after composing; those that differ in learning
        rate and seed alone are resolved once.
        """
        assert self.config is not None
        assert self.hydra_context is not None
        groups: dict[tuple[str, ...], list[tuple[Job, list[Override]]]] = {}
        for job in jobs:
            overrides = self.parse(words_of(job))
            plain = [override for override in overrides if not is_choice(override)]
            if not all(map(is_plain, plain)):
                plain = []
            base = tuple(str(override.input_line) for override in overrides if override not in plain)
            names = tuple(override.key_or_group for override in plain)
            groups.setdefault((*base, "", *names), []).append((job, plain))
        loader = self.hydra_context.config_loader
        with remembering(loader):
            for key, members in groups.items():
                with naming_the_run(words_of(members[0][0])):
                    cfg = loader.load_sweep_config(self.config, list(key[: key.index("")]))
                choices = {str(name): choice for name, choice in cfg.hydra.runtime.choices.items()}
                with open_dict(cfg):
                    del cfg["hydra"]
                resolved: dict[tuple[str, ...], Plan] = {}
                for job, plain in members:
                    with naming_the_run(words_of(job)):
                        ConfigLoaderImpl._apply_overrides_to_config(plain, cfg)
                    same = tuple(str(word.input_line) for word in plain if word.key_or_group not in (LR, SEED))
                    try:
                        if same not in resolved:
                            with file_problems():
                                resolved[same] = planning.resolve(cfg, choices, words_of(job))
                        yield job, planning.named(resolved[same], cfg)
                    except (InputError, OmegaConfBaseException) as error:
                        self.refusals[words_of(job)] = " ".join(str(error).split())
                        yield job, None

    # -- stages ----------------------------------------------------------------------------------------------------

    def once_free(self, jobs: Sequence[Job], earlier: Sequence[Job], number: int) -> Iterator[list[Job]]:
        """Yields ``jobs`` cell by cell, each cell once no other process is training one of its ``earlier`` jobs.

        Processes with the same command share its runs: each skips those that another is training. A learning rate is
        chosen only when the others have finished their runs; a run that another left unfinished is trained here.
        """
        assert self.config is not None
        cells = {cell_of(job) for job in jobs}
        candidates = [job for job in earlier if cell_of(job) in cells]
        missing = [job for job in candidates if words_of(job) not in self.planned]
        self.planned |= {words_of(job): plan for job, plan in self.plans(missing) if plan is not None}
        # a cluster's queue may take days; processes of one distributed run must not decide at different moments
        if self.config.dry_run or isinstance(self.launcher, ArrayLauncher) or launched()[1] > 1:
            yield list(jobs)
            return
        waiting = False
        while jobs:
            self.restart([job for job in candidates if self.was_abandoned(job)])
            held = Counter(cell_of(job) for job in candidates if self.is_held(job))
            ready = [job for job in jobs if cell_of(job) not in held]
            jobs = [job for job in jobs if cell_of(job) in held]
            if ready:
                yield ready
            elif not waiting:
                waiting = True
                print(f"stage {number}: waiting for {held.total()} runs that other processes are training", flush=True)
            if not ready:
                time.sleep(lock.LOOK_S)

    def is_held(self, job: Job) -> bool:
        """Whether a process is training it."""
        plan = self.planned.get(words_of(job))
        return plan is not None and lock.held(plan.folder)

    def was_abandoned(self, job: Job) -> bool:
        """Whether it was skipped here because another process had it, which then left it unfinished."""
        outcome, _ = self.ledger.outcomes.get(self.numbers.get(words_of(job)), ("", EXIT_OK))
        if outcome != SKIPPED or self.is_held(job):
            return False
        try:
            status = run_record.read(self.planned[words_of(job)].folder / run_record.RECORD_NAME).status
        except (FileNotFoundError, run_record.RecordError):
            return True
        return status not in ("ok", "failed")

    def restart(self, jobs: Sequence[Job]) -> None:
        """Launches jobs again; the summary counts only their new outcome."""
        for job in jobs:
            self.ledger.outcomes[self.numbers[words_of(job)]] = RESTARTED, EXIT_OK
        self.launch(jobs)

    def at_chosen_lr(self, jobs: Sequence[Job], earlier: Sequence[Job], number: int) -> list[Job]:
        """``jobs`` with the learning rate that won among ``earlier`` jobs of the same cell, whatever their seed."""
        chosen = self.chosen_of(jobs, earlier, number)
        self.ledger.left_out += sum(chosen[cell_of(job)] is None for job in jobs)
        return [job | {LR: lr} for job in jobs if (lr := chosen[cell_of(job)]) is not None]

    def beyond_edge(self, jobs: Sequence[Job], earlier: Sequence[Job], number: int) -> list[Job]:
        """``jobs`` of the cells whose best rate among ``earlier`` is at an edge of its grid, at one rate beyond it."""
        rates: dict[tuple[str, ...], set[float]] = {}
        for job in (job for job in earlier if LR in job):
            rates.setdefault(cell_of(job), set()).add(float(job[LR]))
        chosen = self.chosen_of(jobs, earlier, number, "one rate further")
        beyond = []
        for job in jobs:
            lr, grid = chosen[cell_of(job)], sorted(rates.get(cell_of(job), ()))
            if lr is not None and at_edge(float(lr), grid):
                beyond.append(job | {LR: lr_text(next_rate(float(lr), grid))})
        return beyond

    def chosen_of(
        self, jobs: Sequence[Job], earlier: Sequence[Job], number: int, at_an_edge: str = "widen it"
    ) -> dict[tuple[str, ...], str | None]:
        """Each cell of ``jobs`` -> the result of ``choose`` among the ``earlier`` jobs of that cell."""
        before: dict[tuple[str, ...], list[Job]] = {cell_of(job): [] for job in jobs}
        names = {cell_of(job): name_of(job) for job in jobs}
        for job in earlier:
            before.get(cell_of(job), []).append(job)
        return {
            cell: self.choose(tried, f"stage {number}, {names[cell]}", at_an_edge) for cell, tried in before.items()
        }

    def choose(self, jobs: Sequence[Job], where: str, at_an_edge: str) -> str | None:
        """The learning rate by the report's rule, as typed; None, said in a line, where there is nothing to choose."""
        runs = []
        typed: dict[float, str] = {}
        held = 0
        elsewhere = self.launcher.waiting if isinstance(self.launcher, ArrayLauncher) else {}
        for job in jobs:
            plan = self.planned.get(words_of(job))
            if plan is None:
                continue
            folder = plan.folder
            held += lock.held(folder) or folder in elsewhere
            try:
                record = run_record.read(folder / run_record.RECORD_NAME)
            except (FileNotFoundError, run_record.RecordError):
                continue
            if record.status == "ok" and record.final is not None:
                lr = float(record.key["lr"])
                runs.append(run_of(folder / run_record.RECORD_NAME, record))
                typed[lr] = job.get(LR, repr(lr))
        if held:
            print(f"{where}: left out, another process is training {held} of the {len(jobs)} runs to choose from")
            return None
        if not runs:
            print(f"{where}: left out, none of the {len(jobs)} runs to choose from is finished")
            return None
        chosen = select(runs)
        split = " on the held-out split" * chosen.held_out
        edge = f", the edge of its grid: {at_an_edge}" if at_edge(chosen.lr, list(chosen.by_lr)) else ""
        best_of = f"the best of {len(chosen.by_lr)}{split} ({len(runs)} of {len(jobs)} runs finished)"
        print(f"{where}: {LR}={lr_text(chosen.lr)}, {best_of}{edge}")
        return typed[chosen.lr]


class Remembering:
    """Hydra's files, each read and parsed once: copies are handed out, because composing changes them."""

    def __init__(self, repository: Any) -> None:
        self.repository = repository
        self.loaded: dict[str, Any] = {}

    def load_config(self, config_path: str) -> Any:
        if config_path not in self.loaded:
            self.loaded[config_path] = self.repository.load_config(config_path)
        return copy.deepcopy(self.loaded[config_path])

    def __deepcopy__(self, memo: dict[int, Any]) -> Remembering:
        return self

    def __getattr__(self, name: str) -> Any:
        return getattr(self.repository, name)


@contextmanager
def naming_the_run(words: Sequence[str]) -> Iterator[None]:
    """Surrounds the composition of one run, so that errors refer to that run's own words, such as its method."""
    try:
        yield
    except (HydraException, ArithmeticError) as error:
        raise InputError(explain(error, words)) from error


@contextmanager
def remembering(loader: Any) -> Iterator[None]:
    before = loader.repository
    loader.repository = Remembering(before)
    try:
        yield
    finally:
        loader.repository = before


def is_list_of_settings(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and all(isinstance(one, Mapping) for one in value)


def check_stages(stages: Sequence[Values], given: Values) -> None:
    """Values typed for a setting of the stages restrict them, like a cell's axes; ``chosen`` and ``widened`` need an
    earlier stage.

    Raises:
        InputError: a value that no stage has.
    """
    for number, stage in enumerate(stages):
        for key, values in stage.items():
            for marker in {CHOSEN, WIDENED} & {*values}:
                if key != LR or values != [marker] or not number:
                    raise InputError(f"stage {number + 1}, {key}: '{marker}' is a value of {LR} after the first stage")
    for key in {key for stage in stages for key in stage} - {LR}:
        valid = list(dict.fromkeys(value for stage in stages for value in stage.get(key, [])))
        for value in given.get(key, []):
            if value not in valid:
                raise one_of(f"{key} in the stages", value, valid)


def next_rate(edge: float, grid: Sequence[float]) -> float:
    """One rate beyond an edge of a grid, at the ratio between the edge and its neighbour; rounded to two digits."""
    neighbour = min((rate for rate in grid if rate != edge), key=lambda rate: abs(math.log(rate / edge)))
    return float(f"{edge * edge / neighbour:.1e}")


def product(lists: Values) -> list[Job]:
    """Every combination.

    Raises:
        InputError: more than anybody can mean; making their list alone would take minutes.
    """
    if math.prod(map(len, lists.values())) > MOST_JOBS:
        longest = max(lists, key=lambda key: len(lists[key]))
        raise InputError(f"more than {MOST_JOBS:,} runs in one sweep; the longest list is {longest}")
    return [dict(zip(lists, values, strict=True)) for values in itertools.product(*lists.values())]


def words_of(job: Job) -> tuple[str, ...]:
    return tuple(f"{key}={value}" for key, value in job.items())


def cell_of(job: Job) -> tuple[str, ...]:
    return tuple(sorted(word for word in words_of(job) if word.partition("=")[0] not in (LR, SEED)))


def name_of(job: Job) -> str:
    """ "cola lora 0.3M", with the protocol where it is given"""
    return " ".join(job[name] for name in (*AXES, "protocol") if name in job)


def sizes_of(cells: Sequence[Job], tasks: Sequence[str]) -> str:
    """ "full, lora 0.3M,1.2M": the methods of the cells of these tasks with their budgets."""
    found: dict[str, list[str]] = {}
    for cell in cells:
        if cell["task"] in tasks:
            budgets = found.setdefault(cell["method"], [])
            budgets += [cell["budget"]] if "budget" in cell and cell["budget"] not in budgets else []
    return "; ".join(f"{method} {','.join(budgets)}".rstrip() for method, budgets in found.items())


def is_choice(override: Override) -> bool:
    """A file of a group: what composing is for."""
    return override.key_or_group in (*GROUPS, "script") or "/" in override.key_or_group


def is_plain(override: Override) -> bool:
    """A number or a word for a setting that is there: setting it again replaces it."""
    changes = override.is_add() or override.is_force_add() or override.is_delete() or override.package is not None
    return not changes and not isinstance(override.value(), dict | list)
