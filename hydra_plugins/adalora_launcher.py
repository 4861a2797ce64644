"""The launcher behind ``hydra/launcher=slurm``: the runs of a sweep as the tasks of one SLURM job array.

submitit writes the script, submits it and requeues tasks that ran out of time. hydra-submitit-launcher names and types
the settings; its own launcher is not used, for it keeps no record of what it submitted, cannot leave without waiting,
and gives up all outcomes when one job has died. Neither package is imported before a sweep is launched.
"""

from __future__ import annotations

import atexit
import io
import os
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, suppress
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from adalora_repro.cli import slurm
from adalora_repro.cli.run import DONE, FAILED, INTERRUPTED, QUEUED, REFUSED, SUBMITTED, Outcome, one_of_many
from adalora_repro.config.catalog import added_folders
from adalora_repro.config.plan import Plan
from adalora_repro.config.words import word
from adalora_repro.errors import (
    EXIT_BAD_INPUT,
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_TERMINATED,
    InputError,
)
from adalora_repro.records import run_record

Words = tuple[str, ...]

POLL_S = 5.0  # between two looks at the queue
LATE_S = 15.0  # how long the result of a task that left the queue may take to be seen over a network file system


class ArrayTask:
    """One run in a job of its own: what submitit pickles, calls in the job and, when it is requeued, calls again."""

    def __init__(self, words: Sequence[str], cwd: str) -> None:
        self.words, self.cwd = list(words), cwd

    def __call__(self) -> Outcome:
        """The outcome, for who waits for it. The task's state in SLURM follows from the exit code.

        Raises:
            SystemExit: interrupted. That is no result: SLURM may requeue the task.
        """
        os.chdir(self.cwd)
        os.environ.pop("HYDRA_FULL_ERROR", None)  # of the sweep's own process, which had it for another reason
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # submitit ignores it, and the run is not there yet
        words = self.words
        if int(os.environ.get("SLURM_RESTART_COUNT", 0)):  # force=true starts over once, not at every requeue
            words = [word for word in words if word.lstrip("+").partition("=")[0] != "force"]
        word, code = one_of_many(words)
        if code in (EXIT_INTERRUPTED, EXIT_TERMINATED):
            raise SystemExit(code)
        if code != EXIT_OK:
            atexit.register(_leave, code)  # after submitit has written the result
        return word, code

    def checkpoint(self) -> Any:
        """The same again: the run finds its own checkpoint."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def _leave(code: int) -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class ArrayLauncher(Launcher):
    """See conf/hydra/launcher/submitit_slurm.yaml.

    Attributes:
        plans: words of a job -> its plan. The sweeper (adalora_sweeper.py) fills it in before it launches; a job
            without a plan is refused.
        refusals: words of a job without a plan -> why.
        waiting: folder of a run that was submitted earlier and is in the queue -> its task.
    """

    def __init__(self, **settings: Any) -> None:
        self.settings = settings
        self.detached = False
        self.plans: Mapping[Words, Plan] = {}
        self.refusals: Mapping[Words, str] = {}
        self.waiting: Mapping[Path, str] = {}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Refuses what could not be submitted, before a run is looked at.

        Raises:
            InputError: submitit or sbatch is missing, a setting has the wrong type.
        """
        self.detached = config.launch == "detach"
        self.results = Path(config.results.dir).expanduser()
        self.folder = Path(config.hydra.sweep.dir)
        self.ledger = vars(task_function)["ledger"]
        self.executor = executor(self.settings)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Submits the jobs and, unless detached, waits for them.

        Raises:
            InputError: SLURM does not take them, or cannot be asked.
        """
        words = [tuple(job) for job in job_overrides]
        outcomes: dict[Words, Outcome] = {}
        self.waiting = slurm.waiting(self.results, slurm.in_queue())
        left: dict[Path, Words] = {}  # two jobs may be the same run
        for job in words:
            if job not in self.plans:
                print(f"refused: {' '.join(job)}: {self.refusals.get(job, '')}", file=sys.stderr)
                outcomes[job] = REFUSED, EXIT_BAD_INPUT
                continue
            if self.plans[job].cfg.measure == "cost":
                print("refused: measure=cost measures where it is started; leave out hydra/launcher", file=sys.stderr)
                outcomes[job] = REFUSED, EXIT_BAD_INPUT
                continue
            folder = self.plans[job].folder
            if left.setdefault(folder, job) != job or folder in self.waiting:
                print(f"in the queue already: {folder} (task {self.waiting.get(folder, 'of this sweep')})")
                outcomes[job] = QUEUED, EXIT_OK
        jobs = self.submit([job for job in left.values() if job not in outcomes])
        try:
            if not self.detached:
                self.wait(jobs, outcomes)
                with suppress(InputError):  # hours later, for the choice of a next stage
                    self.waiting = slurm.waiting(self.results, slurm.in_queue())
        except KeyboardInterrupt:
            print("the runs go on without this process", file=sys.stderr)
            raise
        finally:  # for the summary
            told = [outcomes.get(job, (SUBMITTED, EXIT_OK)) for job in words]
            self.ledger.outcomes |= dict(enumerate(told, initial_job_idx))
        return [JobReturn(_return_value=outcome, status=JobStatus.COMPLETED) for outcome in told]

    def submit(self, words: Sequence[Words]) -> dict[Words, Any]:
        """One array; words of a run -> submitit's job.

        Raises:
            InputError: sbatch refuses.
        """
        from submitit.core.utils import FailedJobError

        if not words:
            return {}
        cwd = os.getcwd()
        options = [f"--config-dir={folder.absolute()}" for folder in added_folders()]
        try:
            with redirect_stderr(io.StringIO()):  # submitit prints what it raises
                tasks = self.executor.submit_array([ArrayTask([*options, *job], cwd) for job in words])
        except FailedJobError as error:
            raise InputError(f"sbatch refused: {message_of_sbatch(str(error))}") from None
        except UnicodeError as error:  # submitit writes the script in the locale's encoding, in which sbatch reads it
            raise InputError(f"cannot write the job's script in this locale ({error}); set LC_ALL=C.UTF-8") from None
        number = tasks[0].job_id.partition("_")[0]
        submission = slurm.Submission(number, time.time(), cwd)
        for job, task in zip(words, tasks, strict=True):
            plan, paths = self.plans[job], task.paths
            submission.runs[task.job_id] = {
                "folder": str(plan.folder),
                "key": plan.key,
                "words": list(job),
                "log": str(paths.stderr),
                "result": str(paths.result_pickle),
            }
        slurm.write(submission, self.folder)
        runs = f"{len(words)} run{'s' if len(words) > 1 else ''}"
        elsewhere = self.results != Path("results")
        where = " " + shlex.quote(f"--results={self.results}") if elsewhere else ""
        own = " " + word("results.dir", str(self.results)) if elsewhere else ""
        print(f"submitted: job {number}, {runs}; logs in {tasks[0].paths.folder}")
        print(f"  adalora-report status --watch{where}   how far they are")
        print(f"  adalora-run cancel {number}{own}   ends them; the same command goes on", flush=True)
        return dict(zip(words, tasks, strict=True))

    def wait(self, jobs: Mapping[Words, Any], outcomes: dict[Words, Outcome]) -> None:
        """Fills in what becomes of the runs. Until then a task may be requeued: it is in the queue all the time."""
        seen = dict.fromkeys(jobs, time.monotonic())  # when each was in the queue
        while jobs.keys() - outcomes.keys():
            queue: Mapping[str, str] | None = None
            with suppress(InputError):  # SLURM does not answer now: that says nothing about the runs
                queue = slurm.in_queue()
            now = time.monotonic()
            for job, task in jobs.items():
                if queue is None or task.job_id in queue:
                    seen[job] = now
                if job in outcomes:
                    continue
                if task.paths.result_pickle.exists():
                    outcome = result_of(task)
                elif now - seen[job] > LATE_S:
                    outcome = outcome_on_disk(self.plans[job].folder)
                else:
                    continue
                outcomes[job] = outcome
                log = f", its log: {task.paths.stderr}" if outcome[1] else ""
                print(f"{outcome[0]}: {self.plans[job].folder} (task {task.job_id}{log})", flush=True)
            if jobs.keys() - outcomes.keys():
                time.sleep(POLL_S)


def result_of(task: Any) -> Outcome:
    """What the task returned; one that raised, a bug say, has failed."""
    from submitit.core.utils import UncompletedJobError

    try:
        outcome: Outcome = task.result()
    except UncompletedJobError:
        return FAILED, EXIT_FAILED
    return outcome


def outcome_on_disk(folder: Path) -> Outcome:
    """Of a run whose task left no result: it was cancelled, killed, or its node is gone."""
    try:
        status = run_record.read(folder / run_record.RECORD_NAME).status
    except (FileNotFoundError, run_record.RecordError):
        return FAILED, EXIT_FAILED
    if status == "ok":
        return DONE, EXIT_OK
    return (FAILED, EXIT_FAILED) if status == "failed" else (INTERRUPTED, EXIT_TERMINATED)


def executor(settings: Mapping[str, Any]) -> Any:
    """submitit's, with these settings.

    Raises:
        InputError: submitit or sbatch is missing, a setting has the wrong type.
    """
    try:
        import submitit
        from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf, SlurmQueueConf
    except ImportError:
        raise InputError("hydra/launcher=slurm needs submitit: pip install 'adalora-repro[slurm]'") from None
    if missing := [name for name in ("sbatch", "srun", "squeue") if shutil.which(name) is None]:
        raise InputError(f"hydra/launcher=slurm: no {missing[0]} here; start it where SLURM takes jobs")
    try:
        typed = OmegaConf.merge(OmegaConf.structured(SlurmQueueConf), settings)
    except OmegaConfBaseException as error:
        raise InputError(f"hydra.launcher.{error.full_key}: {str(error).splitlines()[0]}") from None
    values: dict[str, Any] = OmegaConf.to_container(typed)  # type: ignore[assignment]
    del values["_target_"]
    cpus = values["cpus_per_task"]
    made = submitit.AutoExecutor(
        folder=values.pop("submitit_folder"), cluster="slurm", slurm_max_num_timeout=values.pop("max_num_timeout")
    )
    common = set(OmegaConf.structured(BaseQueueConf))
    made.update_parameters(
        **{name if name in common else f"slurm_{name}": value for name, value in values.items()},
        # srun has not taken this from the job since SLURM 22.05
        slurm_srun_args=[f"--cpus-per-task={cpus}"] if cpus else [],
    )
    return made


def message_of_sbatch(text: str) -> str:
    lines = [line.removeprefix("sbatch: ").removeprefix("error: ").strip() for line in text.splitlines()]
    return "; ".join(line for line in lines if line)
