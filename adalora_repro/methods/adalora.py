"""AdaLoRA (Zhang et al., 2023): SVD adaptation, orthogonal regularization, importance-aware allocation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, get_args

import torch

from adalora_repro.errors import InputError
from adalora_repro.lowrank import BudgetSchedule, RankAllocator
from adalora_repro.lowrank.allocator import Score
from adalora_repro.lowrank.layers import drop_left_factors
from adalora_repro.lowrank.schedule import masks_due
from adalora_repro.methods._svd import SVDMethod, SVDOptions
from adalora_repro.methods.base import LARGEST, AllocationOption, require_size
from adalora_repro.methods.equal_counts import initial_rank, mean_triplets, require_at_least
from adalora_repro.settings import setting


@dataclass
class Options(AllocationOption, SVDOptions):
    """Ranks from the budget; gamma, t_i, t_f and delta_t from ``conf/tuned/``."""

    target_r: int = setting(0, minimum=1, maximum=LARGEST)
    "Mean rank at the end, b_T = n target_r; left out, the budget sets it."
    init_r: int = setting(0, minimum=1, maximum=LARGEST)
    "Rank of every matrix at the start, b_0 = n init_r; left out, the budget sets it."
    params: int | None = None
    """With budget.match=params: the number of parameters that the final triplets may use; init_r follows from
    b_0 >= 1.5 b_T."""
    t_i: int = setting(-1, minimum=0)
    "Optimizer steps before pruning begins."
    t_f: int = setting(0, minimum=1)
    "Optimizer steps at the end, after pruning."
    delta_t: int = setting(0, minimum=1)
    "Optimizer steps from one mask to the next."
    beta1: float = setting(0.85, minimum=0, below=1)
    "Decay of the sensitivity average, eq. (9)."
    beta2: float = setting(0.85, minimum=0, below=1)
    "Decay of the uncertainty average, eq. (10)."
    score: str = setting("importance", choices=get_args(Score))
    "Score of a triplet; equations in RankAllocator."

    def __post_init__(self) -> None:
        super().__post_init__()
        require_size(self, self.params, "target_r")
        if self.params is None:
            require_size(self, None, "init_r")
            if self.target_r > self.init_r:
                raise InputError(f"method.target_r={self.target_r} exceeds method.init_r={self.init_r}")
        unset = [
            f"method.{name}" for name, least in (("t_i", 0), ("t_f", 1), ("delta_t", 1)) if getattr(self, name) < least
        ]
        if unset:
            raise InputError(
                f"{', '.join(unset)}: not set, and no file of conf/tuned sets them for this task. Give method.t_i, "
                "method.t_f and method.delta_t in optimizer steps; with method.schedule=scaled in steps of the T in "
                "task.total_steps, from which they are scaled to this run's T"
            )

    def ranks(self, costs: Sequence[int]) -> tuple[int, int]:
        """b_T and the rank at the start; ``costs`` are parameters of a triplet of each matrix.

        With ``budget.match=params`` the schedule's b_T is N over the mean cost of a triplet; the final masks count
        parameters exactly (``RankAllocator.max_params``). b_0 is 1.5 b_T, as in the paper, rounded up to a rank.

        Raises:
            InputError: N is less than the most expensive triplet costs, or ``init_r`` is too small for b_T.
        """
        n = len(costs)
        if self.params is None:
            return n * self.target_r, self.init_r
        require_at_least(max(costs), self.params)
        b_T, rank = mean_triplets(self.params, costs), self.init_r or initial_rank(self.params, costs)
        if n * rank < b_T:
            raise InputError(
                f"method.init_r={rank} makes {n * rank} triplets in {n} matrices, fewer than the {b_T} that "
                f"{self.params:,} parameters pay for; raise it or leave it out"
            )
        return b_T, rank

    def rank(self, costs: Sequence[int]) -> int:
        return self.ranks(costs)[1]

    def schedule_of(self, costs: Sequence[int], total_steps: int) -> BudgetSchedule:
        """b(t) for matrices with these costs of a triplet, and T.

        Raises:
            InputError: T is too short for t_i + t_f.
        """
        b_T, rank = self.ranks(costs)
        try:
            return BudgetSchedule(len(costs) * rank, b_T, self.t_i, self.t_f, total_steps)
        except ValueError as error:
            raise InputError(
                f"{error}; train longer (train.epochs, train.max_steps), set method.t_i and method.t_f, or keep the "
                "paper's fractions of T with method.schedule=scaled"
            ) from None

    def plan(self, costs: Sequence[int], schedule: BudgetSchedule) -> dict[str, Any]:
        """Entries of a method's plan."""
        n = len(costs)
        return {
            "n": n,
            "b_0": schedule.b_0,
            "b_T": schedule.b_T,
            "t_i": schedule.t_i,
            "t_f": schedule.t_f,
            "delta_t": self.delta_t,
            "alpha": self.alpha,
            "alpha_over_r": self.alpha / (schedule.b_0 // n),
            "gamma": self.gamma,
            "params_final": round(schedule.b_T * sum(costs) / n),
        }


class Method(SVDMethod):
    """``protocol=paper`` scores before the update with the sum of squared norms as R, ``released`` after it with the
    mean norm; ``RankAllocator`` has the other differences."""

    options: Options

    def __init__(self, options: Options, protocol: str) -> None:
        super().__init__(options, protocol)
        self._allocator: RankAllocator | None = None

    def plan(self, total_steps: int) -> dict[str, Any]:
        options, costs = self.options, self.costs
        if self.protocol == "released" and options.t_f < 2:
            raise InputError("method.t_f must be at least 2 with protocol=released, which masks only after T - t_f")
        schedule = options.schedule_of(costs, total_steps)
        plan = options.plan(costs, schedule) | {"mask_events": masks_due(schedule, options.delta_t, self.protocol)}
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
            options.schedule_of(self.costs, total_steps),
            options.delta_t,
            options.beta1,
            options.beta2,
            options.score,  # type: ignore[arg-type]
            self.protocol,  # type: ignore[arg-type]
            options.params,
            options.allocation,  # type: ignore[arg-type]
            seed=torch.initial_seed(),  # the run's seed: the runner sets it in all processes alike
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

    def allocates(self, t: int) -> bool:
        fixed = self.protocol == "paper" and t > self.allocator.schedule.final_step
        return self.allocator.mask_due(t) and not fixed

    def curve(self, t: int) -> dict[str, Any]:
        return {"b_t": self.allocator.budget} | super().curve(t)

    def state_dict(self) -> dict[str, Any]:
        return self.allocator.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.allocator.load_state_dict(state)
        self.share()

    def summary(self) -> dict[str, Any]:
        """The rank of every matrix, and the parameters of the triplets that were kept."""
        pattern = self.allocator.rank_pattern()
        params = sum(rank * self.triplet(self.layers[name].base) for name, rank in pattern.items())
        return {"rank_pattern": pattern, "params": params}
