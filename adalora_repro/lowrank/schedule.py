"""How many triplets survive at step t: eq. (12) of the paper, its misprint corrected."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BudgetSchedule:
    """The global budget b(t), in triplets, for optimizer steps t = 0 … T - 1 (Appendix A)::

        b(t) = b_0                                                            0 <= t < t_i      (warm-up)
               int(b_T + (b_0 - b_T) (1 - (t - t_i) / (T - t_i - t_f))^3)     t_i <= t < T - t_f
               b_T                                                            T - t_f <= t      (final phase)

    Eq. (12) as printed has ``t - t_i - t_f`` in the numerator and ``T - t_i`` below; it exceeds b_0 at t_i and misses
    b_T at T - t_f. This is the form of the released code, which meets both ends.

    Attributes:
        b_0: initial budget, n * init_r.
        b_T: final budget, n * target_r.
        t_i: steps of the initial warm-up, before anything is pruned.
        t_f: steps of the final phase at b_T; with 0 no step is at b_T, and ``RankAllocator`` fixes no set.
        total_steps: T.

    Raises:
        ValueError: a negative number, b_T above b_0, or no step between the phases (T <= t_i + t_f).
    """

    b_0: int
    b_T: int
    t_i: int
    t_f: int
    total_steps: int

    def __post_init__(self) -> None:
        if min(self.b_T, self.t_i, self.t_f) < 0:
            raise ValueError(f"b_T={self.b_T}, t_i={self.t_i} and t_f={self.t_f} must not be negative")
        if self.b_T > self.b_0:
            raise ValueError(f"the final budget b_T={self.b_T} exceeds the initial budget b_0={self.b_0}")
        if self.total_steps <= self.t_i + self.t_f:
            raise ValueError(
                f"T={self.total_steps} steps leave no room to prune between the warm-up t_i={self.t_i} and the final "
                f"phase t_f={self.t_f}: T must exceed t_i + t_f = {self.t_i + self.t_f}"
            )

    @property
    def final_step(self) -> int:
        """T - t_f, the first step at the final budget."""
        return self.total_steps - self.t_f

    def __call__(self, t: int) -> int:
        if t < self.t_i:
            return self.b_0
        if t >= self.final_step:
            return self.b_T
        remaining = 1 - (t - self.t_i) / (self.final_step - self.t_i)
        return int(self.b_T + (self.b_0 - self.b_T) * remaining**3)


def mask_due(schedule: BudgetSchedule, delta_t: int, protocol: str, t: int) -> bool:
    """Whether Λ is masked after step t.

    ``paper``: at t_i <= t < T - t_f every delta_t steps (t % delta_t == 0), and at every t >= T - t_f, the set being
    fixed at T - t_f. ``released``: when t > t_i and t % delta_t == 0, and at every t > T - t_f.
    """
    if protocol == "released":
        return t > schedule.final_step or (t > schedule.t_i and t % delta_t == 0)
    return t >= schedule.final_step or (t >= schedule.t_i and t % delta_t == 0)


def masks_due(schedule: BudgetSchedule, delta_t: int, protocol: str) -> int:
    """At how many steps t <= T - t_f ``mask_due`` is true: the masks until the set is fixed."""
    if protocol == "released":
        return schedule.final_step // delta_t - schedule.t_i // delta_t
    return (schedule.final_step - 1) // delta_t - (schedule.t_i - 1) // delta_t + 1
