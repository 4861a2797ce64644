"""The launcher behind ``hydra/launcher=ray``: the runs of a sweep as Ray tasks, on this machine or a running cluster.

hydra-ray-launcher 1.2.2 cannot be installed beside this project's cloudpickle and dateutil, loses all outcomes with the
first worker that dies, and cancels nothing: a subclass would replace all that it does.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from adalora_repro.cli.ledger import Outcome, SweepRun, outcome_on_disk, without_force
from adalora_repro.config.catalog import added_folders
from adalora_repro.config.sweep import RayConfig, Words
from adalora_repro.errors import EXIT_TERMINATED, InputError, first_line
from adalora_repro.training.progress import Prefixed, complain, say
from adalora_repro.training.signals import Interrupted, StopSignal, remembered

ConfigStore.instance().store(group="hydra/launcher", name="ray_types", node=RayConfig)


class RayLauncher(Launcher):
    """See conf/hydra/launcher/ray.yaml."""

    def __init__(self, address: str, **options: float) -> None:
        self.address, self.options = address, options

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Raises InputError if Ray is not installed or refuses a setting, before a run is looked at."""
        try:
            import ray

            if self.options["num_gpus"] > 1 and self.options["num_gpus"] % 1:
                raise ValueError("num_gpus is a part of one GPU or a whole number")
            self.task = ray.remote(max_calls=1, **self.options)(run_one)  # a process of its own for each run
        except ModuleNotFoundError:
            raise InputError("hydra/launcher=ray needs Ray: pip install 'adalora-repro[ray]'") from None
        except (ValueError, ArithmeticError) as error:
            raise InputError(f"hydra.launcher: {first_line(error)}") from None
        self.logs = Path(config.hydra.sweep.dir).absolute() / "ray"
        self.ray, self.ledger = ray, vars(task_function)["ledger"]

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Trains the jobs, each as soon as a node has room for it.

        Raises InputError if there is no such cluster, or no room for a run on this machine; SystemExit if a signal
        asked this process to stop: the runs that had begun are saved.
        """
        self.connect()
        self.logs.mkdir(parents=True, exist_ok=True)
        options = [f"--config-dir={folder.absolute()}" for folder in added_folders()]
        tasks: dict[Any, tuple[Words, list[Output]]] = {}
        jobs = [tuple(words) for words in job_overrides]
        for number, words in enumerate(jobs, initial_job_idx + 1):
            run, log = self.ledger.sweep[words], self.logs / str(number)
            streams = {".err": sys.stderr, ".out": sys.stdout}  # in this order: a run prints its result last
            outputs = [Output(log.with_suffix(name), to, run.label) for name, to in streams.items()]
            task = self.task.options(name=run.label).remote([*options, *words], os.getcwd(), sys.path, log, run)
            tasks[task] = words, outputs
        stop, cancelled = StopSignal(), False
        with suppress(Interrupted), stop.installed(), stop.deferred():  # a second signal ends the waiting
            while tasks:
                ended, _ = self.ray.wait(list(tasks), timeout=0.5)
                for output in (output for _, outputs in tasks.values() for output in outputs):
                    output.copy()
                for task in ended:
                    self.enter(task, tasks.pop(task)[0])
                if stop.signum and not cancelled:
                    cancelled = True
                    say("adalora-run: stopping; every run saves a checkpoint after its step")
                    for task in tasks:
                        self.ray.cancel(task)  # SIGINT for a run that has begun
        if stop.signum:
            raise SystemExit(stop.exit_code)
        return [JobReturn(_return_value=self.ledger.outcomes[job], status=JobStatus.COMPLETED) for job in jobs]

    def connect(self) -> None:
        """Starts Ray here, until this process ends, or joins a cluster; raises InputError if it cannot."""
        if self.ray.is_initialized():  # by an earlier stage
            return
        address, setting = self.address, f"hydra.launcher.address={self.address}"
        if address == "auto" and (variable := os.environ.get("RAY_ADDRESS")):
            address, setting = variable, f"{setting} (RAY_ADDRESS={variable})"
        host, colon, port = address.rpartition("://")[2].rpartition(":")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere
        os.environ.setdefault("RAY_task_oom_retries", str(self.options["max_retries"]))  # Ray's default: without end
        own = {"include_dashboard": False, "object_store_memory": 80 * 2**20} if self.address == "local" else {}
        try:
            if colon:  # Ray itself would wait for hours
                socket.create_connection((host, int(port)), timeout=10).close()
            self.ray.init(self.address, log_to_driver=False, logging_level="ERROR", **own)
        except (OSError, ValueError) as error:
            raise InputError(f"{setting}: {first_line(error)}") from None
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(EXIT_TERMINATED))  # Ray's handler exits with another code
        nodes = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        for name, unit, hint in (("num_gpus", "GPU", " (without a GPU: num_gpus=0)"), ("num_cpus", "CPU", "")):
            need, there = self.options[name], max((node.get(unit, 0) for node in nodes), default=0)
            if need > there and own:
                raise InputError(f"hydra.launcher.{name}={need:g}: this machine has {there:g}{hint}")
            if need > there:
                say(f"adalora-run: hydra.launcher.{name}={need:g}: no node has over {there:g}{hint}; runs wait for one")

    def enter(self, task: Any, words: Words) -> None:
        """Enters the outcome of a task that has ended into the ledger; one cancelled before it began has none."""
        try:
            self.ledger.outcomes[words] = self.ray.get(task)
        except self.ray.exceptions.TaskCancelledError:
            pass
        except self.ray.exceptions.RayError as error:
            run = self.ledger.sweep[words]
            complain(f"{run.label}: {first_line(getattr(error, 'cause', error))}")
            self.ledger.outcomes[words] = outcome_on_disk(run)


class Output:
    """A file of a run's output, copied to a stream of this process while it grows."""

    def __init__(self, path: Path, stream: Any, label: str) -> None:
        path.unlink(missing_ok=True)  # of an earlier command with the same hydra.sweep.dir
        self.path, self.stream, self.copied = path, Prefixed(stream, f"{label} "), 0

    def copy(self) -> None:
        with suppress(FileNotFoundError), open(self.path, encoding="utf-8", errors="replace") as file:
            file.seek(self.copied)
            self.stream.write(file.read())
            self.stream.flush()
            self.copied = file.tell()


def run_one(words: Sequence[str], folder: str, path: Sequence[str], log: Path, run: SweepRun) -> Outcome:
    """One run in a process of its own: what Ray calls, and again when that process or its node has died."""
    os.chdir(folder)
    sys.path[:] = path
    from adalora_repro.cli.run import one_of_many

    with (
        open(log.with_suffix(".out"), "a", buffering=1, encoding="utf-8") as out,
        open(log.with_suffix(".err"), "a", buffering=1, encoding="utf-8") as err,
        redirect_stdout(out),
        redirect_stderr(err),
        remembered(),
    ):
        return one_of_many(without_force(words, run))
