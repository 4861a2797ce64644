"""What the training loop asks of a fine-tuning method, and the defaults most methods share.

A method is one module of this package with a class ``Method`` and a dataclass ``Options``, and one YAML in
``conf/method/`` that names the module and sets the options. Nothing else knows it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

    from adalora_repro.backbones import Site


class BaseMethod:
    """A method that has nothing to do but choose what trains; others override what they need.

    The loop calls, in this order: ``inject`` once, ``on_train_start`` once, then per optimizer step t = 0 … T-1
    ``regularizer`` (after the task loss's backward), ``before_update(t)`` and ``after_update(t)`` around
    ``optimizer.step()``. Gradients are alive in both, unscaled and summed over processes.
    """

    #: roles of the weight matrices the method works on (backbones.SITES); empty: it needs none
    roles: Sequence[str] = ()

    def inject(self, model: nn.Module, sites: Sequence[Site]) -> None:
        """Replaces modules of ``model`` and leaves ``requires_grad`` only on what trains; before an optimizer exists."""
        raise NotImplementedError

    def on_train_start(self, total_steps: int) -> None:
        """T as the loop counts it."""

    def regularizer(self) -> Tensor | None:
        """gamma * R as a scalar with a gradient, or None; never part of an evaluation loss."""
        return None

    def before_update(self, t: int) -> None:
        """Step t, gradients final and clipped, parameters not yet updated."""

    def after_update(self, t: int) -> None:
        """Step t, parameters updated, gradients still there."""

    def masked(self) -> AbstractContextManager[None]:
        """Inside, the model is the one that counts at the budget; evaluate there."""
        return nullcontext()

    def at_final_budget(self, t: int) -> bool:
        """Whether, after step t, the model is at its final budget (``best`` counts only then)."""
        return True

    def curve(self, t: int) -> dict[str, Any]:
        """What the method adds to a line of log.jsonl; called at logging steps only."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """All that resuming needs beside parameters and optimizer."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state:
            raise ValueError(f"{type(self).__module__} keeps no state, but the checkpoint has {sorted(state)}")

    def summary(self) -> dict[str, Any]:
        """``rank_pattern`` and ``budget`` for the record where the method has them; ``params`` if pruning changed it."""
        return {}
