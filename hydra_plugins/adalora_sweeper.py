"""The sweeper behind ``adalora-run -m``: lists as Hydra has them, the cells of a table, stages.

Hydra takes sweepers from the namespace ``hydra_plugins`` alone. What a sweep consists of is in ``config/sweep.py``;
composing, skipping what is finished and launching are here.
"""

from __future__ import annotations

import itertools
import shlex
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.core.utils import JobStatus
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from adalora_repro.cli.hydra_errors import explain, plan_errors
from adalora_repro.cli.ledger import ALREADY, FAILED, PLANNED, REFUSED, SKIPPED, Ledger, SweepRun, report_command
from adalora_repro.config import resolve as planning
from adalora_repro.config import sweep as sweeps
from adalora_repro.config.dry_run import SweepPlan
from adalora_repro.config.plan import Plan
from adalora_repro.config.schema import LAUNCHES
from adalora_repro.config.sweep import CHOSEN, LR, SEED, WIDENED, Job, Values, Words, cell_of, state_of, words_of
from adalora_repro.config.words import word
from adalora_repro.errors import EXIT_BAD_INPUT, EXIT_FAILED, EXIT_OK, InputError, expanded, one_of
from adalora_repro.records import lock
from adalora_repro.settings import check
from adalora_repro.training.distributed import launched
from adalora_repro.training.progress import complain, prefixed
from hydra_plugins.adalora_launcher import ArrayLauncher

ConfigStore.instance().store(group="hydra/sweeper", name="cells_types", node=sweeps.SweeperConfig)
ONE_FOR_ALL = ("sweep", "results.dir", "launch")  # settings with one value for all runs


class CellSweeper(Sweeper):
    """See conf/hydra/sweeper/cells.yaml. What becomes of the runs goes into the task function's ``ledger``."""

    def __init__(
        self,
        max_batch_size: int | None,
        params: Mapping[str, Any],
        cells: Mapping[str, Sequence[Any]],
        stages: Sequence[Any],
    ) -> None:
        self.batch_size, self.params, self.cells, self.stages = max_batch_size, params, cells, stages
        self.ledger = Ledger()
        self.plans: dict[Words, Plan] = {}  # of the runs whose configuration is sound
        self.dry_run = SweepPlan()
        self.runs: set[Path | Words] = set()  # of the stages that have begun
        self.launches = 0  # jobs given to the launcher
        self.launcher: Launcher | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        if config.launch not in LAUNCHES:
            raise one_of("launch", config.launch, LAUNCHES)
        check(sweeps.SweeperConfig, config.hydra.sweeper, "hydra.sweeper.")
        if config.launch == "detach" and config.force and len(self.stages) > 1:
            raise InputError("launch=detach force=true: every call would start stage 1 again; leave out one of them")
        self.hydra_context, self.config = hydra_context, config
        self.ledger = vars(task_function)["ledger"]
        if config.dry_run:  # a plan needs no cluster and leaves nothing on disk
            return
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )
        if config.launch == "detach" and not isinstance(self.launcher, ArrayLauncher):
            raise InputError("launch=detach leaves the runs to the queue of a cluster: hydra/launcher=slurm")

    def sweep(self, arguments: list[str]) -> None:
        """Runs everything; the outcomes are in the ledger.

        Raises:
            InputError: nothing is left of the cells or stages, a word has no meaning in a sweep, or the configuration
                of a run cannot be composed; no job has begun.
        """
        self.ledger.begun = True
        given = self.values(self.params) | self.values(arguments)
        if "cost" in (self.config.measure, *given.get("measure", ())) and not self.one_by_one:
            raise InputError("measure=cost measures the machine on which it is started; leave out hydra/launcher")
        tables = {table: [self.values(lists) for lists in cells] for table, cells in self.cells.items()}
        stages = [self.values(stage) for stage in self.stages] or [{}]
        sweeps.check_stages(stages, given)
        earlier: dict[Words, Job] = {}
        for number, stage in enumerate(stages, 1):
            jobs = sweeps.jobs_of(given | stage, tables)
            rate = stage.get(LR, [""])[0]
            if rate in (CHOSEN, WIDENED):
                asked = sweeps.wanted(jobs, stage, given) if rate == CHOSEN else jobs
                jobs = self.at_chosen_rates(number, rate, asked, list(earlier.values()))
            left = self.launch(self.new(sweeps.wanted(jobs, stage, given)))
            unfinished = any(state_of(self.plans[words_of(job)].folder) != "failed" for job in left)
            if self.config.launch == "detach" and unfinished and number < len(stages):
                print(f"stage {number} of {len(stages)}: when its runs have ended, repeat the command for the next")
                return
            earlier |= {words_of(job): job for job in jobs}
        if self.config.dry_run:
            print(self.dry_run.total())

    def values(self, lists: Sequence[str] | Mapping[str, Any]) -> Values:
        """Key -> values in the order given, of words or of a mapping; the last word for a key wins."""
        words = (
            [f"{key}={'null' if value is None else value}" for key, value in lists.items()]
            if isinstance(lists, Mapping)
            else lists
        )
        values: Values = {}
        for override in self.parse(words):
            key, several = override.get_key_element(), override.is_sweep_override()
            name = key.lstrip("+")
            key = name if name in (LR, SEED) else key  # which are always there: a plus changes nothing
            if several and not override.is_discrete_sweep():
                raise HydraException(f"{override.input_line}: a range without steps is no list of runs")
            if several and name in ONE_FOR_ALL:
                typed = override.input_line.partition("=")[2]
                quoted = f"'+sweep=[{typed}]'" if name == "sweep" else word(name, typed)
                raise InputError(f"{name} must be one for all runs; a comma in it needs quotes: {quoted}")
            if several:
                values[key] = list(itertools.islice(override.sweep_string_iterator(), sweeps.MOST_JOBS + 1))
            elif name not in ("sweep", "launch"):  # of the sweep, not of its runs
                values[key] = [override.get_value_element_as_str()]
        return values

    def parse(self, words: Sequence[str]) -> list[Override]:
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        return list(parser.parse_overrides(list(words)))

    @property
    def one_by_one(self) -> bool:
        """The runs are trained in this process."""
        return str(self.config.hydra.runtime.choices["hydra/launcher"]) == "basic"

    # -- jobs -> runs ----------------------------------------------------------------------------------------------

    def new(self, jobs: Sequence[Job]) -> list[Job]:
        """The jobs that are no run of an earlier stage, nor one another's."""
        self.plan(jobs)
        new: list[Job] = []
        for job in jobs:
            plan = self.plans.get(words_of(job))  # measurements of cost share a folder
            run = plan.folder if plan and plan.cfg.measure != "cost" else words_of(job)
            new += [job] if run not in self.runs else []
            self.runs.add(run)
        if repeated := len(jobs) - len(new):
            print(f"{repeated} of {len(jobs)} runs repeat another of this sweep and are left out")
        return new

    def launch(self, jobs: Sequence[Job]) -> list[Job]:
        """Skips the finished runs, gives the others to the launcher and returns them."""
        left: list[Job] = []
        for number, job in enumerate(jobs, 1):
            words, plan = words_of(job), self.plans.get(words_of(job))
            name = sweeps.label_of(plan.key, job, jobs) if plan else " ".join(words)
            earlier = planning.record_in(plan.folder) if plan and plan.cfg.force else None
            run = SweepRun(f"[{number}/{len(jobs)}] {name}".rstrip(), plan.folder if plan else None, earlier)
            self.ledger.sweep[words] = run
            if plan is None:
                self.refuse(words)
                continue
            if self.config.dry_run:
                self.ledger.outcomes[words] = PLANNED, EXIT_OK
                try:
                    print(f"{run.label}: {self.dry_run.line(plan)}")
                except InputError as error:
                    self.ledger.refusals[words] = str(error)
                    self.refuse(words)
                continue
            tables = ["table15"] if self.config.measure == "cost" else self.cells
            self.ledger.report = report_command(tables, plan.key, expanded(self.config.results.dir))
            if score := finished(plan):
                self.ledger.outcomes[words] = ALREADY, EXIT_OK
                print(f"{run.label} {planning.already_done(plan, score)}")
            else:
                left.append(job)
        if not left:
            return left
        folder = Path(self.config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(self.config, folder / "multirun.yaml")
        size = 1 if self.one_by_one else self.batch_size or len(left)
        for start in range(0, len(left), size):
            batch = [words_of(job) for job in left[start : start + size]]
            with prefixed(self.ledger.sweep[batch[0]].label) if self.one_by_one else nullcontext():
                self.launch_batch(batch)
        return left

    def refuse(self, words: Words) -> None:
        self.ledger.outcomes[words] = REFUSED, EXIT_BAD_INPUT
        complain(f"error: {self.ledger.refusals[words]} (run: {shlex.join(words)})")

    def launch_batch(self, batch: Sequence[Words]) -> None:
        assert self.launcher is not None
        if isinstance(self.launcher, ArrayLauncher):
            self.launcher.plans = self.plans
        first, self.launches = self.launches, self.launches + len(batch)
        for words, job in zip(batch, self.launcher.launch(batch, first), strict=True):
            # a job in this process keeps its errors to itself: this one failed in a process of its launcher's
            failed = job.status != JobStatus.COMPLETED
            self.ledger.outcomes[words] = (FAILED, EXIT_FAILED) if failed else job.return_value

    def plan(self, jobs: Sequence[Job]) -> None:
        """Fills in ``plans`` and ``refusals``.

        Each cell is composed and resolved once; its runs differ in learning rate and seed alone.

        Raises:
            InputError: the configuration of a cell cannot be composed.
        """
        cells: dict[Words, list[Job]] = {}
        for job in jobs:
            if words_of(job) not in self.plans:
                set_later = tuple(name for name in (LR, SEED) if name in job)
                cells.setdefault((*cell_of(job), *set_later), []).append(job)
        for members in cells.values():
            common = words_of({key: value for key, value in members[0].items() if key not in (LR, SEED)})
            try:
                cfg = self.hydra_context.config_loader.load_sweep_config(self.config, list(common))
            except (HydraException, OmegaConfBaseException, ArithmeticError) as error:
                raise InputError(explain(error, words_of(members[0]))) from error
            choices = {str(name): choice for name, choice in cfg.hydra.runtime.choices.items()}
            with open_dict(cfg):
                del cfg["hydra"]
            resolved: Plan | None = None
            for words in map(words_of, members):
                try:
                    with plan_errors(words):
                        for override in self.parse([text for text in words if text not in common]):
                            OmegaConf.update(cfg, override.key_or_group, override.value())
                        resolved = resolved or planning.resolve(cfg, choices, words)
                        self.plans[words] = planning.named(resolved, cfg)
                except InputError as error:
                    self.ledger.refusals[words] = str(error)

    # -- stages ----------------------------------------------------------------------------------------------------

    def at_chosen_rates(self, number: int, rate: str, jobs: Sequence[Job], earlier: Sequence[Job]) -> list[Job]:
        """The jobs at the rate that ``rate`` stands for in their cell; without those of a cell that has no choice."""
        self.plan(earlier)  # also those that the command line leaves out: they are chosen from
        earlier = [job for job in earlier if words_of(job) in self.plans]
        cells = {cell_of(job) for job in jobs}
        self.wait([job for job in earlier if cell_of(job) in cells], number)
        tried = [(job, self.plans[words_of(job)].folder) for job in earlier]
        derived, choices = sweeps.derived(rate, jobs, tried)
        for cell, choice in choices.items():
            if choice.lr or not self.config.dry_run:
                print(f"stage {number}, {sweeps.name_of(cell)}: {choice.why}")
        without = len(jobs) - len(derived) if rate == CHOSEN else 0
        if self.config.dry_run:
            self.dry_run.later += without
        else:
            self.ledger.left_out += without
        return derived

    def wait(self, jobs: Sequence[Job], number: int) -> None:
        """Until no other process is training one of the jobs, of which a learning rate is to be chosen.

        Processes with the same command share its runs: each skips those that another is training. A run that another
        left unfinished is trained here.
        """
        # a cluster's queue may take days; processes of one distributed run must not decide at different moments
        if self.config.dry_run or isinstance(self.launcher, ArrayLauncher) or launched()[1] > 1:
            return
        announced = False
        first_seen: dict[tuple[Words, object], float] = {}  # each state of a lease
        while True:
            states = {words_of(job): state_of(self.plans[words_of(job)].folder) for job in jobs}
            for words in [words for words, state in states.items() if state == "held"]:
                folder, now = self.plans[words].folder, time.monotonic()
                silent = now - first_seen.setdefault((words, lock.seen(folder / lock.NAME)), now) > lock.LEASE_S
                if silent and not lock.held(folder, sure=True):
                    states[words] = "its machine is gone"
            skipped = [words for words, (outcome, _) in self.ledger.outcomes.items() if outcome == SKIPPED]
            ended = [words for words, state in states.items() if state not in ("held", "ok", "failed")]
            self.launch([job for job in jobs if words_of(job) in ended and words_of(job) in skipped])
            held = list(states.values()).count("held")
            if not held:
                return
            if not announced:
                runs = f"{held} run{'s' * (held > 1)}"
                print(f"stage {number}: waiting for {runs} that other processes are training", flush=True)
            announced = True
            time.sleep(lock.LOOK_S)


def finished(plan: Plan) -> str | None:
    """The score of a finished run that need not be started."""
    # several processes look together, when they get to it: here each would see another moment
    if launched()[1] > 1 or plan.cfg.force:
        return None
    try:
        return planning.finished(plan)
    except InputError:
        return None  # the job reports it
