"""AdaLoRA (Zhang et al., 2023): SVD adaptation, orthogonal regularization, importance-aware allocation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast, get_args

import torch
from torch import nn

from adalora_repro.errors import InputError, one_of
from adalora_repro.lowrank import BudgetSchedule, RankAllocator
from adalora_repro.lowrank.allocator import Allocation, Score
from adalora_repro.lowrank.layers import drop_left_factors
from adalora_repro.lowrank.schedule import masks_due
from adalora_repro.methods._svd import SVDMethod, SVDOptions
from adalora_repro.methods.base import require_positive, require_size
from adalora_repro.methods.equal_counts import initial_rank, mean_triplets, require_at_least

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from adalora_repro.models.backbones import Site


@dataclass
class Options(SVDOptions):
    """Ranks from the budget; gamma, t_i, t_f and delta_t from ``conf/tuned/``.

    ``target_r``: mean rank at the end, b_T = n target_r; ``init_r``: rank of every matrix at the start, b_0 = n init_r;
    or ``params``: the triplets of the end fill so many parameters, and init_r is what b_0 >= 1.5 b_T needs, if not set;
    ``gamma``: weight of R, eq. (4); ``t_i``, ``t_f``, ``delta_t``: phases in optimizer steps; ``beta1``, ``beta2``:
    eqs. (9), (10); ``score``: importance | sensitivity | gradient | magnitude | random (equations in
    ``RankAllocator``); ``allocation``: global | uniform.
    """

    target_r: int = 0
    init_r: int = 0
    params: int | None = None
    t_i: int = -1
    t_f: int = 0
    delta_t: int = 0
    beta1: float = 0.85
    beta2: float = 0.85
    score: str = "importance"
    allocation: str = "global"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_size(self, self.params, "target_r")
        if self.params is None or self.init_r:  # left out, it follows from params
            require_size(self, None, "init_r")
        require_positive(self, "t_f", "delta_t")
        if self.t_i < 0:
            raise InputError(f"method.t_i must be 0 or more, not {self.t_i}; conf/tuned/ sets it")
        if self.params is None and self.target_r > self.init_r:
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
        self.b_T = 0
        self._allocator: RankAllocator | None = None

    def inject(self, model: PreTrainedModel, sites: Sequence[Site]) -> None:
        matrices = [cast(nn.Linear, model.get_submodule(site.path)) for site in self.options.matrices(sites)]
        self._choose([self.triplet(matrix) for matrix in matrices])
        super().inject(model, sites)

    def triplet(self, base: nn.Linear) -> int:
        """Parameters of one triplet: a column of P, a λ, a row of Q."""
        return base.out_features + 1 + base.in_features

    def _choose(self, costs: Sequence[int]) -> None:
        """Sets b_T and the rank at the start; ``costs`` are parameters of a triplet of each matrix.

        To fill a number of parameters b_T is what it pays for on average, for the schedule; the masks of the end count
        parameters (``RankAllocator.max_params``). b_0 is then 1.5 b_T, as the paper has it, rounded up to a rank.

        Raises:
            InputError: the parameters are less than the dearest triplet, or ``init_r`` is too small for b_T.
        """
        n, options = len(costs), self.options
        if options.params is None:
            self.b_T = n * options.target_r
            return
        require_at_least(max(costs), options.params)
        self.b_T = mean_triplets(options.params, costs)
        self.rank = options.init_r or initial_rank(options.params, costs)
        if n * self.rank < self.b_T:
            raise InputError(
                f"method.init_r={self.rank} makes {n * self.rank} triplets in {n} matrices, fewer than the "
                f"{self.b_T} that {options.params:,} parameters pay for; raise it or leave it out"
            )

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
                b_0=n * self.rank,
                b_T=self.b_T,
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
        costs = [self.triplet(layer.base) for layer in self.layers.values()]
        plan = {
            "n": len(self.layers),
            "b_0": schedule.b_0,
            "b_T": schedule.b_T,
            "t_i": schedule.t_i,
            "t_f": schedule.t_f,
            "delta_t": options.delta_t,
            "mask_events": masks_due(schedule, options.delta_t, self.protocol),
            "alpha": options.alpha,
            "alpha_over_r": options.alpha / self.rank,
            "gamma": options.gamma,
            "params_final": round(schedule.b_T * sum(costs) / len(costs)),
        }
        if options.params is None:
            return plan
        at_init = self.rank * sum(costs)
        if at_init <= options.params:
            return plan | {"params_min": at_init, "params_max": at_init}
        return plan | {"params_min": options.params - max(costs) + 1, "params_max": options.params}  # one did not fit

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
            options.params,
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
        pattern = self.allocator.rank_pattern()
        params = sum(rank * self.triplet(self.layers[name].base) for name, rank in pattern.items())
        return {"rank_pattern": pattern, "params": params}
