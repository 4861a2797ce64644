"""The state of a run, and the part of it that a checkpoint holds."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from adalora_repro.errors import one_line
from adalora_repro.models import inject
from adalora_repro.training import checkpoint

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from adalora_repro.config.plan import Plan
    from adalora_repro.methods.base import BaseMethod
    from adalora_repro.tasks.base import BaseTask, TaskData
    from adalora_repro.training.distributed import Processes

#: the loop's own values in a checkpoint
LOOP = ("looked", "best", "final", "train_s", "eval_s", "tokens", "log_bytes", "evaluation_due")


class NonFiniteLossError(ArithmeticError):
    """The loss of a step, or a weight after it, is NaN or infinite; the message names the step."""


@dataclass
class RunState:
    """What changes from step to step; a checkpoint holds ``state_dict``.

    Attributes:
        compiled: the compiled ``model``, for training steps; None without train.compile.
        products: entered wherever the model is called: how its products are computed.
        t: the next step, from 0.
        losses: of the steps since the last ``look``, on the device.
        looked: losses of the steps since the last log line, on the host.
        log_due: this step is logged; ``step`` then also sets ``task_norm``, the norm of the task loss's gradient.
        constant: of the final evaluation, as in ``Evaluation``.
        train_s, eval_s: seconds; ``tokens`` counts those of the training rows, without padding.
        log_bytes: length of ``log.jsonl`` at the checkpoint.
        evaluation_due: the evaluation after step t has not been completed.
        check_folder: raises if the folder is no longer this run's; called before every write.
    """

    plan: Plan
    model: PreTrainedModel
    method: BaseMethod
    task: BaseTask
    data: TaskData
    optimizer: torch.optim.Optimizer
    scheduler: Any
    processes: Processes
    compiled: Any = None
    products: Callable[[], AbstractContextManager[Any]] = nullcontext
    t: int = 0
    losses: list[Tensor] = field(default_factory=list)
    looked: list[float] = field(default_factory=list)
    log_due: bool = False
    task_norm: Tensor | None = None
    best: dict[str, Any] | None = None
    final: dict[str, Any] | None = None
    constant: dict[str, str] = field(default_factory=dict)
    train_s: float = 0.0
    eval_s: float = 0.0
    tokens: int = 0
    log_bytes: int = 0
    evaluation_due: bool = False
    check_folder: Callable[[], None] = lambda: None

    @property
    def device(self) -> torch.device:
        return self.processes.accelerator.device

    def look(self) -> None:
        """Moves the losses of the steps since the last call to the host; waits for the device.

        Raises:
            NonFiniteLossError: one of them is not finite.
        """
        if not self.losses:
            return
        values = torch.stack(self.losses).tolist()
        for step, value in enumerate(values, self.t - len(values)):
            if not math.isfinite(value):
                raise NonFiniteLossError(f"the loss is {value} at step {step}; a lower optim.lr may help")
        self.looked += values
        self.losses = []

    def check_weights(self) -> None:
        """Waits for the device once.

        Raises:
            NonFiniteLossError: a trained weight is not finite.
        """
        trained = inject.trained(self.model)
        finite = torch.stack([parameter.isfinite().all() for parameter in trained.values()])
        for name, is_finite in zip(trained, finite.tolist(), strict=True):
            if not is_finite:
                raise NonFiniteLossError(f"{name} is not finite after step {self.t - 1}; a lower optim.lr may help")

    # -- checkpoint ------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        return {
            "format": checkpoint.VERSION,
            "hash": self.plan.key["hash"],
            "t": self.t,
            "model": self._weights(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "method": self.method.state_dict(),
            "rng": list(self.processes.gathered([checkpoint.rng_state()])),
            "loop": {name: getattr(self, name) for name in LOOP},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resumes from a state that ``state_dict`` returned and ``checkpoint.load`` read.

        Raises:
            ValueError: the state does not fit: another version of this program or of a library made it. The run then
                holds neither the old state nor the new one.
        """
        try:
            weights, saved = self._weights(), state["model"]
            if weights.keys() != saved.keys() or any(saved[name].shape != weights[name].shape for name in weights):
                raise ValueError("its weights have other names or shapes")  # torch would broadcast
            with torch.no_grad():
                for name, weight in weights.items():
                    weight.copy_(saved[name])
            self.optimizer.load_state_dict(state["optimizer"])
            self.scheduler.load_state_dict(state["scheduler"])
            self.method.load_state_dict(state["method"])
            for name in LOOP:
                setattr(self, name, state["loop"][name])
            self.t = state["t"]
            streams = state["rng"] if isinstance(state["rng"], list) else [state["rng"]]  # the first version kept one
            if self.processes.rank < len(streams):  # additional processes start new streams
                checkpoint.set_rng_state(streams[self.processes.rank])
        except (KeyError, TypeError, AttributeError, IndexError, RuntimeError) as error:
            if checkpoint.no_memory(error):
                raise
            raise ValueError(one_line(error)) from None

    def _weights(self) -> dict[str, Tensor]:
        return {name: parameter.detach() for name, parameter in inject.trained(self.model).items()}
