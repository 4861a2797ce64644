"""AdaLoRA (Zhang et al., 2023): SVD adaptation, orthogonal regularization, importance-aware allocation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn

from adalora_repro.errors import InputError, one_of
from adalora_repro.inject import freeze_backbone, replace
from adalora_repro.lowrank import BudgetSchedule, RankAllocator, SVDLinear, orthogonality_penalty
from adalora_repro.lowrank.layers import drop_left_factors, share_left_factors
from adalora_repro.lowrank.orthogonality import Form, orthogonality_errors
from adalora_repro.lowrank.schedule import mask_due
from adalora_repro.methods.base import BaseMethod, LowRankOptions, require_positive

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from adalora_repro.backbones import Site


@dataclass
class Options(LowRankOptions):
    """Ranks from the budget; gamma, t_i, t_f and delta_t from ``conf/tuned/``.

    ``target_r``: mean rank at the end, b_T = n target_r; ``init_r``: rank of every matrix at the start, b_0 = n init_r;
    ``gamma``: weight of R, eq. (4); ``t_i``, ``t_f``, ``delta_t``: phases in optimizer steps; ``beta1``, ``beta2``:
    eqs. (9), (10); ``score``: importance | sensitivity | magnitude.
    """

    target_r: int = 0
    init_r: int = 0
    gamma: float = 0.1
    t_i: int = -1
    t_f: int = 0
    delta_t: int = 0
    beta1: float = 0.85
    beta2: float = 0.85
    score: str = "importance"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "target_r", "init_r", "t_f", "delta_t")
        if self.t_i < 0:
            raise InputError(f"method.t_i must be 0 or more, not {self.t_i}; conf/tuned/ sets it")
        if self.target_r > self.init_r:
            raise InputError(f"method.target_r={self.target_r} exceeds method.init_r={self.init_r}")
        if self.gamma < 0:
            raise InputError(f"method.gamma must be 0 or more, not {self.gamma}")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"method.{name} must lie in [0, 1), not {getattr(self, name)}")
        if self.score not in ("importance", "sensitivity", "magnitude"):
            raise one_of("method.score", self.score, ("importance", "sensitivity", "magnitude"))


class Method(BaseMethod):
    """``protocol=paper`` scores before the update with the sum of squared norms as R, ``released`` after it with the
    mean norm; the rest of the difference is in ``RankAllocator``."""

    def __init__(self, options: Options, protocol: str) -> None:
        self.options, self.protocol = options, protocol
        self.layers: dict[str, SVDLinear] = {}
        self._allocator: RankAllocator | None = None

    def inject(self, model: PreTrainedModel, sites: Sequence[Site]) -> None:
        freeze_backbone(model)
        options = self.options

        def make(site: Site, old: nn.Module) -> nn.Module:
            return SVDLinear(cast(nn.Linear, old), options.init_r, options.alpha, options.init_std)

        self.layers = cast(dict[str, SVDLinear], replace(model, options.matrices(sites), make))

    def schedule(self, total_steps: int) -> BudgetSchedule:
        """b(t) for this model and T.

        Raises:
            InputError: T is too short for t_i + t_f.
        """
        n, options = len(self.layers), self.options
        if self.protocol == "released" and options.t_f < 2:
            raise InputError("method.t_f must be at least 2 with protocol=released, which masks only after T - t_f")
        try:
            return BudgetSchedule(
                b_0=n * options.init_r,
                b_T=n * options.target_r,
                t_i=options.t_i,
                t_f=options.t_f,
                total_steps=total_steps,
            )
        except ValueError as error:
            raise InputError(
                f"{error}; train longer (train.epochs, train.max_steps), set method.t_i and method.t_f, or keep the "
                "paper's fractions of T with method.schedule=scaled"
            ) from None

    def plan(self, total_steps: int) -> dict[str, Any]:
        schedule, options = self.schedule(total_steps), self.options
        per_triplet = [layer.base.in_features + layer.base.out_features + 1 for layer in self.layers.values()]
        masks = sum(mask_due(schedule, options.delta_t, self.protocol, t) for t in range(schedule.final_step + 1))
        return {
            "n": len(self.layers),
            "b_0": schedule.b_0,
            "b_T": schedule.b_T,
            "t_i": schedule.t_i,
            "t_f": schedule.t_f,
            "delta_t": options.delta_t,
            "mask_events": masks,
            "alpha": options.alpha,
            "alpha_over_r": options.alpha / options.init_r,
            "gamma": options.gamma,
            "params_final": round(schedule.b_T * sum(per_triplet) / len(per_triplet)),
        }

    def on_train_start(self, total_steps: int) -> None:
        options = self.options
        self._allocator = RankAllocator(
            self.layers,
            self.schedule(total_steps),
            options.delta_t,
            options.beta1,
            options.beta2,
            options.score,  # type: ignore[arg-type]
            self.protocol,  # type: ignore[arg-type]
        )
        self._share()

    @property
    def allocator(self) -> RankAllocator:
        if self._allocator is None:
            raise RuntimeError("AdaLoRA's allocator exists from on_train_start on")
        return self._allocator

    def regularizer(self) -> Tensor | None:
        if self.options.gamma == 0:
            return None
        form: Form = "sum_squared" if self.protocol == "paper" else "mean_norm"
        return self.options.gamma * orthogonality_penalty(self.layers.values(), form)

    def before_update(self, t: int) -> None:
        if self.protocol == "paper":
            self.allocator.observe(t)

    def after_update(self, t: int) -> None:
        if self.protocol == "released":
            self.allocator.observe(t)
        self.allocator.allocate(t)
        self._share()

    @contextmanager
    def masked(self) -> Iterator[None]:
        with self.allocator.masked():
            drop_left_factors(list(self.layers.values()))
            yield
        self._share()

    def _share(self) -> None:
        share_left_factors(list(self.layers.values()))

    def at_final_budget(self, t: int) -> bool:
        return self.allocator.at_final_budget(t)

    def curve(self, t: int) -> dict[str, Any]:
        """b_t and, for every matrix, the two errors of Figure 4 (in the order of ``rank_pattern``)."""
        left, right = orthogonality_errors(self.layers.values())
        return {
            "b_t": self.allocator.budget,
            "orthogonality_P": [float(f"{error:.4g}") for error in left],
            "orthogonality_Q": [float(f"{error:.4g}") for error in right],
        }

    def state_dict(self) -> dict[str, Any]:
        return self.allocator.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.allocator.load_state_dict(state)
        self._share()

    def summary(self) -> dict[str, Any]:
        """The rank of every matrix, and the parameters that belong to surviving triplets."""
        pattern = self.allocator.rank_pattern()
        params = sum(
            rank * (self.layers[name].base.in_features + self.layers[name].base.out_features + 1)
            for name, rank in pattern.items()
        )
        return {"rank_pattern": pattern, "params": params}
