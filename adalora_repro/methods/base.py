"""What the training loop asks of a fine-tuning method, and the defaults most methods share.

A method is one module, of this package or any other, with a class ``Method`` and a dataclass ``Options``, and one YAML
in ``conf/method/`` that names the module and sets the options. Nothing else knows it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from adalora_repro.errors import InputError
from adalora_repro.models.sites import MATRIX_ROLES, matching
from adalora_repro.settings import setting

if TYPE_CHECKING:
    from pathlib import Path

    from omegaconf import DictConfig
    from torch import Tensor
    from transformers import PreTrainedModel

    from adalora_repro.models.sites import Site
    from adalora_repro.tasks.base import Batch


LARGEST = 2**20  # rank or width: far beyond any use, small enough that torch can count the parameters


@dataclass
class BaseOptions:
    """What every method's YAML has."""

    name: str
    "Id of the method, as in records and tables."
    module: str
    "Module with the classes Method and Options: a name in methods/, or any importable one, my_package.my_method."
    schedule: str = setting("absolute", choices=("absolute", "scaled"))
    """absolute: t_i, t_f, delta_t and warm-up steps are taken as they are; scaled: they are counts at the paper's T of
    the task (task.total_steps) and are scaled to the run's T."""


# Options that came later and are left out of a run's identity at their value from before. They stand apart from the
# methods because the configuration (schema.MethodFields) needs them, too, and imports no torch.


@dataclass
class InitOption:
    init: str = setting("normal", later="normal", choices=("normal", "kaiming"))
    "Initial values of A. normal: N(0, init_std^2); kaiming: uniform, with standard deviation 1/sqrt(3 d_in)."


@dataclass
class PatternOption:
    rank_pattern: dict[str, int] | None = setting(None, later=None)
    """Matrix -> rank, 0 leaves a matrix frozen; on the command line the folder or the record of a finished run, or a
    JSON file."""


@dataclass
class RankOptions(PatternOption):
    initial_rank: bool = setting(False, later=False)
    "With budget.match=params: every matrix has AdaLoRA's initial rank at that number, so there are more parameters."


@dataclass
class AllocationOption:
    allocation: str = setting("global", later="global", choices=("global", "uniform"))
    "global: the best triplets of all matrices are kept; uniform: the same number in every matrix."


@dataclass
class MatrixOptions(BaseOptions):
    """Options of the methods that adapt weight matrices."""

    targets: list[str] | None = None
    "Roles of the adapted matrices: q k v attn_out ffn_in ffn_out cross_q …; null: all that the backbone has."
    layers: list[int] | None = None
    "Numbers of the adapted layers, from 0; null: all."

    def __post_init__(self) -> None:
        for role in self.targets or ():
            if role not in MATRIX_ROLES:
                raise InputError(f"method.targets: unknown role '{role}'; valid: {', '.join(MATRIX_ROLES)}")
        for name in ("targets", "layers"):
            if getattr(self, name) == []:
                raise InputError(f"method.{name} is empty; null stands for all")

    def matrices(self, sites: Sequence[Site]) -> list[Site]:
        """The adapted matrices, in the order of ``sites``."""
        matrices = [site for site in sites if site.role in MATRIX_ROLES]
        present = {site.role for site in matrices}
        roles = self.targets if self.targets is not None else [role for role in MATRIX_ROLES if role in present]
        return matching(matrices, roles, self.layers)


@dataclass
class LowRankOptions(MatrixOptions):
    """Options of the methods that add an increment of low rank."""

    alpha: float = setting(16.0, above=0)
    "The increment of a matrix is scaled by alpha / r, r the rank at the start."
    init_std: float = setting(0.02, above=0)
    "Standard deviation of initial values."

    def __post_init__(self) -> None:
        super().__post_init__()
        if getattr(self, "init", "normal") == "kaiming" and self.init_std != LowRankOptions.init_std:
            raise InputError(
                f"method.init_std={self.init_std} needs method.init=normal; with method.init=kaiming the standard "
                "deviation is 1/sqrt(3 d_in)"
            )


def require_size(options: object, params: int | None, *names: str) -> None:
    """Raises InputError unless the sizes are set (0 is not), or left to ``params`` (``budget.match=params``)."""
    for name in names:
        value = getattr(options, name)
        if params is None and not value:
            raise InputError(f"method.{name} is not set; the budget or method.{name}=… sets it")
        if params is not None and value:
            raise InputError(f"method.{name}={value} and budget.match=params both choose the size; leave one out")


class BaseMethod:
    """A method that only chooses which parameters train; others override what they need.

    The loop calls, in this order: ``inject`` once, ``on_train_start`` once, then per optimizer step t = 0 … T-1
    ``regularizer`` (after the task loss's backward), ``before_update(t)`` and ``after_update(t)`` around
    ``optimizer.step()``. Gradients are alive in both, unscaled and summed over processes.

    Attributes:
        compiled: whether training steps go through a compiler; set before ``on_train_start``.
        mergeable: whether the trained model can be a plain one of its class (``save=merged``).
    """

    compiled = False
    mergeable = True

    def __init__(self, options: Any, protocol: str) -> None:
        self.options, self.protocol = options, protocol

    def inject(self, model: PreTrainedModel, sites: Sequence[Site]) -> None:
        """Replaces modules and sets ``requires_grad`` of what trains; called before the optimizer exists."""
        raise NotImplementedError

    def plan(self, total_steps: int) -> dict[str, Any]:
        """After ``inject`` on a model without weights: what the dry run shows and the record keeps.

        ``params_final``, if there, is the method's parameter count at the final budget.

        Raises:
            InputError: the schedule does not fit into T.
        """
        return {}

    def prepare(self, batches: Callable[[], Iterable[Batch]], forward: Callable[[Batch], object]) -> None:
        """Initial values that depend on data; called once, before step 0, never when a run is resumed.

        Args:
            batches: yields the batches of the first epoch from its start; the same in every process.
            forward: runs the model on a batch: no dropout, no gradients.
        """

    def on_train_start(self, total_steps: int) -> None:
        """Called with the loop's T, when the model is on its device."""

    def regularizer(self) -> Tensor | None:
        """gamma * R as a scalar with a gradient, or None; never part of an evaluation loss."""
        return None

    def before_update(self, t: int) -> None:
        """Called in step t with the final, clipped gradients, before the parameters are updated."""

    def after_update(self, t: int) -> None:
        """Called in step t after the parameters are updated, with the same gradients."""

    def masked(self) -> AbstractContextManager[None]:
        """Inside, the model is at its budget (pruned triplets are zero); evaluate there."""
        return nullcontext()

    def at_final_budget(self, t: int) -> bool:
        """Whether the model is at its final budget after step t (only then can an evaluation be ``best``)."""
        return True

    def allocates(self, t: int) -> bool:
        """Whether step t chooses anew what is kept, and so takes longer than others."""
        return False

    def curve(self, t: int) -> dict[str, Any]:
        """The method's entries for a line of log.jsonl; called at logging steps only."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """All that resuming needs besides the parameters and the optimizer."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state:
            raise ValueError(f"{type(self).__module__} keeps no state, but the checkpoint has {sorted(state)}")

    def write(self, model: PreTrainedModel, cfg: DictConfig, folder: Path) -> None:
        """Writes what was trained of a model at its budget: in HF PEFT's LoRA format if that can express it, otherwise
        the trained parameters under their own names."""
        from adalora_repro.models import export, inject

        if export.expressible(model):
            export.write_peft(model, cfg, folder)
        else:
            export.write_tensors(inject.trained(model), folder / export.OWN_WEIGHTS)

    def read(self, model: PreTrainedModel, sites: Sequence[Site], folder: Path) -> PreTrainedModel:
        """Puts what ``write`` wrote into a fresh backbone, in fp32; a plain model again where that is possible.

        Raises:
            InputError: the model is of another backbone.
        """
        from safetensors.torch import load_file

        from adalora_repro.models import export

        if (folder / export.PEFT_CONFIG).exists():
            export.add_peft(model, folder)
        else:
            self.inject(model, sites)
            export.take(model, load_file(folder / export.OWN_WEIGHTS), folder)
            export.merge(model)
        return model

    def summary(self) -> dict[str, Any]:
        """For the record: ``rank_pattern``, and ``params`` where pruning changed the method's parameter count."""
        return {}
