"""AdaLoRA (Zhang et al., 2023): SVD adaptation, orthogonal regularization, importance-aware allocation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, get_args

import torch

from adalora_repro.errors import InputError, one_of
from adalora_repro.lowrank import BudgetSchedule, RankAllocator
from adalora_repro.lowrank.allocator import Allocation, Score
from adalora_repro.lowrank.layers import drop_left_factors
from adalora_repro.lowrank.schedule import mask_due
from adalora_repro.methods._svd import SVDMethod, SVDOptions
from adalora_repro.methods.base import require_positive


@dataclass
class Options(SVDOptions):
    """Ranks from the budget; gamma, t_i, t_f and delta_t from ``conf/tuned/``.

    ``target_r``: mean rank at the end, b_T = n target_r; ``init_r``: rank of every matrix at the start, b_0 = n init_r;
    ``gamma``: weight of R, eq. (4); ``t_i``, ``t_f``, ``delta_t``: phases in optimizer steps; ``beta1``, ``beta2``:
    eqs. (9), (10); ``score``: importance | sensitivity | magnitude | random; ``allocation``: global | uniform.
    """

    target_r: int = 0
    init_r: int = 0
    t_i: int = -1
    t_f: int = 0
    delta_t: int = 0
    beta1: float = 0.85
    beta2: float = 0.85
    score: str = "importance"
    allocation: str = "global"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "target_r", "init_r", "t_f", "delta_t")
        if self.t_i < 0:
            raise InputError(f"method.t_i must be 0 or more, not {self.t_i}; conf/tuned/ sets it")
        if self.target_r > self.init_r:
            raise InputError(f"method.target_r={self.target_r} exceeds method.init_r={self.init_r}")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"method.{name} must lie in [0, 1), not {getattr(self, name)}")
        for name, valid in (("score", get_args(Score)), ("allocation", get_args(Allocation))):
            if getattr(self, name) not in valid:
                raise one_of(f"method.{name}", getattr(self, name), valid)


class Method(SVDMethod):
    """``protocol=paper`` scores before the update with the sum of squared norms as R, ``released`` after it with the
    mean norm; the rest of the difference is in ``RankAllocator``."""

    def __init__(self, options: Options, protocol: str) -> None:
        super().__init__(options, options.init_r, protocol)
        self.options = options
        self._allocator: RankAllocator | None = None

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
        per_triplet = self.per_triplet().values()
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

    def per_triplet(self) -> dict[str, int]:
        """Parameters of one triplet (of one doublet in LoRA) of each matrix."""
        return {
            name: sum(p.numel() for p in layer.parameters() if p.requires_grad) // layer.r
            for name, layer in self.layers.items()
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
            options.allocation,  # type: ignore[arg-type]
            seed=torch.initial_seed(),  # the run's seed: session.py sets it for all processes alike
        )
        self.share()

    @property
    def allocator(self) -> RankAllocator:
        if self._allocator is None:
            raise RuntimeError("AdaLoRA's allocator exists from on_train_start on")
        return self._allocator

    def before_update(self, t: int) -> None:
        if self.protocol == "paper":
            self.allocator.observe(t)

    def after_update(self, t: int) -> None:
        if self.protocol == "released":
            self.allocator.observe(t)
        self.allocator.allocate(t)
        self.share()

    @contextmanager
    def masked(self) -> Iterator[None]:
        with self.allocator.masked():
            drop_left_factors(self.svd_layers())
            yield
        self.share()

    def at_final_budget(self, t: int) -> bool:
        return self.allocator.at_final_budget(t)

    def curve(self, t: int) -> dict[str, Any]:
        return {"b_t": self.allocator.budget} | super().curve(t)

    def state_dict(self) -> dict[str, Any]:
        return self.allocator.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.allocator.load_state_dict(state)
        self.share()

    def summary(self) -> dict[str, Any]:
        """The rank of every matrix, and the parameters that belong to surviving triplets."""
        pattern, per_triplet = self.allocator.rank_pattern(), self.per_triplet()
        params = sum(rank * per_triplet[name] for name, rank in pattern.items())
        return {"rank_pattern": pattern, "params": params}
