"""The launcher behind ``hydra/launcher=slurm``: the runs of a sweep as the tasks of one SLURM job array.

submitit writes the script, submits it and requeues tasks that ran out of time; hydra-submitit-launcher names and types
the settings. Its own ``launch`` gives up all outcomes when one task has died, cannot leave without waiting, and submits
again what is in the queue. submitit itself is not imported before a sweep is launched.
"""

from __future__ import annotations

import io
import os
import shlex
import shutil
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, suppress
from pathlib import Path

from hydra.core.utils import JobReturn, JobStatus
from hydra.types import HydraContext, TaskFunction
from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf
from hydra_plugins.hydra_submitit_launcher.submitit_launcher import SlurmLauncher
from omegaconf import DictConfig, OmegaConf

from adalora_repro.cli.ledger import DONE, QUEUED, SUBMITTED, Outcome, SweepRun, outcome_on_disk, without_force
from adalora_repro.config.catalog import added_folders
from adalora_repro.config.plan import Plan
from adalora_repro.config.sweep import Words
from adalora_repro.errors import EXIT_OK, InputError, expanded
from adalora_repro.records import slurm

POLL_S = 5.0  # between two looks at the queue
LATE_S = 15.0  # how long the record of a task that left the queue may take to be seen over a network file system


class ArrayLauncher(SlurmLauncher):
    """See conf/hydra/launcher/slurm.yaml.

    Attributes:
        plans: words of a job -> its plan. The sweeper (adalora_sweeper.py) fills it in before it launches.
    """

    plans: Mapping[Words, Plan]

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Refuses what could not be submitted, before a run is looked at.

        Raises:
            InputError: there is no SLURM here.
        """
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        if missing := [name for name in ("sbatch", "srun", "squeue") if shutil.which(name) is None]:
            raise InputError(f"hydra/launcher=slurm: no {missing[0]} here; start it where SLURM takes jobs")
        self.results = expanded(config.results.dir)
        self.ledger = vars(task_function)["ledger"]

    def __call__(self, words: Sequence[str], cwd: str, run: SweepRun) -> None:
        """One run in a task of its own: what submitit calls there, and again when the task is requeued.

        Raises:
            SystemExit: the run did not succeed; an interrupted one goes on from its checkpoint when it is requeued.
        """
        from adalora_repro.cli.run import one_of_many

        os.chdir(cwd)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # submitit ignores it, and the run is not there yet
        _, code = one_of_many(without_force(words, run))
        if code != EXIT_OK:
            raise SystemExit(code)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Submits the jobs that are not in the queue and, unless detached, waits for all of them.

        Raises:
            InputError: SLURM does not take them, or cannot be asked.
        """
        jobs = [tuple(words) for words in job_overrides]
        queued = slurm.waiting(self.results, slurm.in_queue())
        tasks: dict[Words, str] = {}
        new: list[Words] = []
        outcomes: dict[Words, Outcome] = self.ledger.outcomes
        for words in jobs:
            folder = self.plans[words].folder
            if folder in queued:
                print(f"already queued: {folder} (task {queued[folder]})")
                outcomes[words], tasks[words] = (QUEUED, EXIT_OK), queued[folder]
            else:
                new.append(words)
        tasks |= self.submit(new)
        outcomes |= dict.fromkeys(new, (SUBMITTED, EXIT_OK))
        if self.config.launch != "detach":
            try:
                self.wait(tasks, outcomes)
            except KeyboardInterrupt:
                print("the submitted runs continue")
                raise
        return [JobReturn(_return_value=outcomes[words], status=JobStatus.COMPLETED) for words in jobs]

    def submit(self, jobs: Sequence[Words]) -> dict[Words, str]:
        """One array; words of a run -> id of its task.

        Raises:
            InputError: sbatch refuses.
        """
        import submitit

        if not jobs:
            return {}
        common = set(OmegaConf.structured(BaseQueueConf))
        settings = dict(self.params)
        folder, timeouts = settings.pop("submitit_folder"), settings.pop("max_num_timeout")
        executor = submitit.AutoExecutor(folder=folder, cluster="slurm", slurm_max_num_timeout=timeouts)
        cpus = settings["cpus_per_task"]  # srun has not taken this from the job since SLURM 22.05
        executor.update_parameters(slurm_srun_args=[f"--cpus-per-task={cpus}"] if cpus else [])
        executor.update_parameters(
            **{name if name in common else f"slurm_{name}": value for name, value in settings.items()}
        )
        options = [f"--config-dir={folder.absolute()}" for folder in added_folders()]
        try:
            with redirect_stderr(io.StringIO()):  # submitit prints what it raises
                words, runs = [[*options, *job] for job in jobs], [self.ledger.sweep[job] for job in jobs]
                tasks = executor.map_array(type(self)(), words, [os.getcwd()] * len(jobs), runs)
        except submitit.core.utils.FailedJobError as error:
            lines = [line.removeprefix("sbatch: ").removeprefix("error: ").strip() for line in str(error).splitlines()]
            raise InputError(f"sbatch refused: {'; '.join(filter(None, lines))}") from None
        ids = {job: task.job_id for job, task in zip(jobs, tasks, strict=True)}
        number = tasks[0].job_id.partition("_")[0]
        keys = {task: self.plans[job].key for job, task in ids.items()}
        slurm.write(slurm.Submission(number, time.time(), keys), Path(self.config.hydra.sweep.dir))
        where = "" if self.results == Path("results") else " " + shlex.quote(f"--results={self.results}")
        print(f"submitted: job {number}, {len(jobs)} run{'s'[: len(jobs) > 1]}; logs in {tasks[0].paths.folder}")
        print(f"  adalora-report status{where}   shows how far they are")
        print(f"  scancel {number}   cancels them; the same command resumes them", flush=True)
        return ids

    def wait(self, tasks: Mapping[Words, str], outcomes: dict[Words, Outcome]) -> None:
        """Fills in what becomes of the runs. Until then a task may be requeued: it is in the queue all the time.

        submitit's own watcher asks ``sacct``, which has no answer on a cluster without accounting.
        """
        left = dict(tasks)
        gone: dict[Words, float] = {}  # since when each is not in the queue
        while left:
            time.sleep(POLL_S)
            with suppress(InputError):  # no answer from SLURM now; the runs may go on
                queue, now = slurm.in_queue(), time.monotonic()
                queued = slurm.waiting(self.results, queue)  # also what the same command submitted elsewhere
                gone = {words: since for words, since in gone.items() if tasks[words] not in queue}
                for words in [words for words, task in left.items() if task not in queue]:
                    run = self.ledger.sweep[words]
                    outcome = outcome_on_disk(run)
                    since = now if run.folder in queued else gone.setdefault(words, now)
                    if outcome[0] == DONE or now - since >= LATE_S:
                        outcomes[words] = outcome
                        print(f"{run.label} {outcome[0]} (task {left.pop(words)})", flush=True)
