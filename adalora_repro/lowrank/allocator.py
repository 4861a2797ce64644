"""Which triplets of which matrix survive: the allocation half of Algorithm 1."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from itertools import accumulate
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from adalora_repro.lowrank import importance
from adalora_repro.lowrank.layers import LowRankLinear, SVDLinear, stack_by_shape
from adalora_repro.lowrank.schedule import BudgetSchedule, mask_due

Score = Literal["importance", "sensitivity", "gradient", "magnitude", "random"]
Allocation = Literal["global", "uniform"]
Protocol = Literal["paper", "released"]


class RankAllocator:
    """Scores all triplets of a model and masks Λ down to the budget b(t), eqs. (5)-(11).

    Call ``observe(t)`` and ``allocate(t)`` once per optimizer step t = 0, 1, …

    * ``protocol="paper"``: ``observe`` before the optimizer's step (the weight and gradient of step t, Algorithm 1),
      ``allocate`` after it. A mask is due when t_i <= t < T - t_f and t % delta_t == 0; the set is fixed at
      t = T - t_f, and that fixed mask is applied after every later step. Exactly b(t) triplets survive.
    * ``protocol="released"``: both after the optimizer's step, as the authors' code does. A mask is due when t > t_i
      and t % delta_t == 0, and at every t > T - t_f; the averages freeze at T - t_f; scores equal to the threshold
      are pruned, too.

    Pruned λ keep being trained between masks and may come back until the set is fixed.

    ``score`` is S of eq. (7): ``importance`` with s = Ī Ū; ``sensitivity`` with s = I (released: its average Ī);
    ``magnitude`` is S_i = |λ_i|; ``random`` one number for each triplet, drawn once from ``seed``: a control.
    ``gradient``, also a control, is eq. (7) with s = Ḡ, |∇L| smoothed as eq. (9) smooths the sensitivity:
    Ḡ^(t)(w) = β1 Ḡ^(t-1)(w) + (1 - β1) |∇_w L^(t)|, Ḡ^(-1) = 0. It omits the weight of eq. (8) and the
    uncertainty of eqs. (10) and (11); everything else is as for ``importance``.

    ``allocation``: ``global`` is eq. (6), the b(t) best of all triplets; ``uniform`` shares b(t) evenly, every matrix
    keeps the best of its own (``importance.level``): a control.

    Layers of LoRA are pruned by doublets, "Prune LoRA" of Table 4: eqs. (8)-(11) for the entries of B and A,
    ``importance.doublet_score`` for eq. (7), the same b(t). A doublet has no λ to mask, so that all of it is zeroed,
    the column of B and the row of A. Then no gradient reaches either any more and its sensitivity is 0; only what the
    optimizer remembers still moves it, and it hardly comes back, which is the paper's point. B = 0 at the start gives
    every doublet the score 0 at t = 0, so a mask there keeps the first ones; the warm-up t_i is for that.

    All work is done on tensors stacked by shape; no value is copied to the host in a step. Where the frozen
    weights are in bf16 (``train.precision=bf16``), so is Ū; Ī has the precision of the parameters.

    Args:
        layers: name -> layer; the order breaks ties and names the ranks.
        schedule: b(t).
        delta_t: steps between two masks.
        beta1, beta2: of the averages, eqs. (9) and (10).
        max_params: from T - t_f on, instead of b_T triplets those stay, best score first, whose parameters fit into
            this number (``importance.keep_within``); a triplet of P, Λ and Q has d_out + 1 + d_in, a doublet of B and A
            d_out + d_in. With ``allocation="uniform"`` the ranks then differ by one at most
            (``importance.keep_level``). None: b_T triplets.

    Raises:
        ValueError: no layers, delta_t < 1, a beta outside [0, 1), more budget than triplets, an unknown score,
            allocation or protocol, magnitude for doublets.
    """

    def __init__(
        self,
        layers: Mapping[str, LowRankLinear],
        schedule: BudgetSchedule,
        delta_t: int,
        beta1: float = 0.85,
        beta2: float = 0.85,
        score: Score = "importance",
        protocol: Protocol = "paper",
        max_params: int | None = None,
        allocation: Allocation = "global",
        seed: int = 0,
    ) -> None:
        if not layers:
            raise ValueError("the allocator needs at least one layer")
        if delta_t < 1:
            raise ValueError(f"delta_t must be at least 1, not {delta_t}")
        if not (0 <= beta1 < 1 and 0 <= beta2 < 1):
            raise ValueError(f"beta1={beta1} and beta2={beta2} must lie in [0, 1)")
        choices = {"score": (score, Score), "protocol": (protocol, Protocol), "allocation": (allocation, Allocation)}
        for what, (value, valid) in choices.items():
            if value not in get_args(valid):
                raise ValueError(f"unknown {what} '{value}'; valid: {', '.join(get_args(valid))}")
        self._triplets = all(isinstance(layer, SVDLinear) for layer in layers.values())
        if score == "magnitude" and not self._triplets:
            raise ValueError("the score magnitude is |λ|, and doublets have no λ")
        total = sum(layer.r for layer in layers.values())
        if schedule.b_0 > total:
            raise ValueError(f"the initial budget b_0={schedule.b_0} exceeds the {total} triplets of the layers")
        self.layers = dict(layers)
        self.schedule, self.delta_t = schedule, delta_t
        self.beta1, self.beta2 = beta1, beta2
        self.score, self.protocol, self.allocation = score, protocol, allocation
        self.max_params = max_params
        self._parts = ("lora_E", "lora_B", "lora_A") if self._triplets else ("lora_B", "lora_A")

        self._groups = stack_by_shape(list(self.layers.values()))
        self._ranks = [layer.r for layer in self.layers.values()]
        # scores and masks are flat, in the order of `layers`; the stacks hold them group by group
        start = dict(zip(map(id, self.layers.values()), accumulate(self._ranks, initial=0), strict=False))
        stacked = [start[id(layer)] + i for group in self._groups for layer in group for i in range(layer.r)]
        # per group one tensor each for Λ (n, r, 1), P (n, d_out, r) and Q (n, r, d_in), in this order; B and A in LoRA
        self._average = [torch.zeros_like(weights) for weights in self._weights()]
        # with frozen weights in bf16 gradients have 8 significant bits; Ū needs no more: eq. (7) averages its rounding.
        # Promoted, because in fp16 it would underflow.
        precision = torch.promote_types(self._groups[0][0].base.weight.dtype, torch.bfloat16)
        self._uncertainty = [torch.zeros_like(average, dtype=precision) for average in self._average]
        device = self._average[0].device
        self._from_stacks = torch.argsort(torch.tensor(stacked)).to(device)
        costs = [layer.base.out_features + self._triplets + layer.base.in_features for layer in self.layers.values()]
        self._kinds = len(set(costs))
        self._level_cost = sum(costs)  # parameters of one triplet in every matrix
        self._sizes = torch.tensor(self._ranks, device=device)
        self._costs = torch.tensor(costs, device=device).repeat_interleave(self._sizes, output_size=total)
        self._scores: Tensor | None = None
        self._mask = torch.ones(total, dtype=torch.bool, device=device)
        if score == "random":
            self._random = torch.rand(total, generator=torch.Generator().manual_seed(seed)).to(device)

    # -- what is due when ------------------------------------------------------------------------------------------

    def mask_due(self, t: int) -> bool:
        """Whether ``allocate(t)`` masks."""
        return mask_due(self.schedule, self.delta_t, self.protocol, t)

    def at_final_budget(self, t: int) -> bool:
        """Whether b_T triplets are left after step t."""
        final = self.schedule.final_step
        return t > final or (t == final and self.mask_due(t))

    def _fixed(self, t: int) -> bool:
        """Whether the set of survivors was decided before step t."""
        return self.protocol == "paper" and t > self.schedule.final_step

    # -- the two calls of a step -----------------------------------------------------------------------------------

    @torch.no_grad()
    def observe(self, t: int) -> None:
        """Takes weights and gradients of step t into the averages, and scores the triplets if a mask is due.

        A layer that took no part in the loss (``encoder_layerdrop``) has a gradient of zero.

        Raises:
            RuntimeError: no layer has a gradient.
        """
        if self._fixed(t):
            return
        raw = None
        frozen = self.protocol == "released" and t >= self.schedule.final_step
        if not frozen and self.score in ("importance", "sensitivity", "gradient"):
            grads = self._grads()
            by_gradient = self.score == "gradient"
            raw = importance.gradient_size(grads) if by_gradient else importance.sensitivity(self._weights(), grads)
            importance.update_averages_(self._average, self._uncertainty, raw, self.beta1, self.beta2)
        if self.mask_due(t):
            self._scores = self._score_triplets(raw)

    @torch.no_grad()
    def allocate(self, t: int) -> None:
        """Zeroes λ of all but b(t) triplets (of doublets both vectors) if a mask is due at t (T of eq. 6).

        Raises:
            RuntimeError: ``observe(t)`` was not called.
        """
        if not self.mask_due(t):
            return
        if not self._fixed(t):
            if self._scores is None:
                raise RuntimeError(f"a mask is due at t={t}, but observe({t}) was not called")
            self._mask = self._keep(self._scores, t)
            self._scores = None
        self._apply_mask()

    def _keep(self, scores: Tensor, t: int) -> Tensor:
        """Mask of the triplets that survive step t."""
        if self.max_params is not None and t >= self.schedule.final_step:
            if self.allocation == "uniform":
                most = (self.max_params // self._level_cost + 1) * len(self.layers)
                return importance.keep_level(scores, self._costs, self.max_params, self._kinds, most)
            return importance.keep_within(scores, self._costs, self.max_params, self._kinds)
        keep = importance.keep_top if self.protocol == "paper" else importance.keep_above_threshold
        return keep(scores, self.schedule(t))

    # -- the result ------------------------------------------------------------------------------------------------

    @property
    def budget(self) -> int:
        """Triplets left by the last mask; all of them before the first. Waits for the device."""
        return int(self._mask.sum())

    def rank_pattern(self) -> dict[str, int]:
        """Layer name -> triplets kept by the last mask, in the order of ``layers``."""
        kept = torch.split(self._mask.cpu(), self._ranks)
        return {name: int(mask.sum()) for name, mask in zip(self.layers, kept, strict=True)}

    @contextmanager
    def masked(self) -> Iterator[None]:
        """Inside, the layers are masked as they count at the budget, whatever was trained since the last mask."""
        values = self._values()
        trained = [value.detach().clone() for value in values]
        with torch.no_grad():
            self._apply_mask()
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(values, trained)

    def state_dict(self) -> dict[str, Any]:
        """Averages and mask, and whose they are: all that resuming needs beside the parameters."""
        return {
            "schedule": asdict(self.schedule),
            "protocol": self.protocol,
            "names": list(self.layers),
            "average": [tensor.clone() for tensor in self._average],
            "uncertainty": [tensor.clone() for tensor in self._uncertainty],
            "mask": self._mask.clone(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores ``state_dict``.

        Raises:
            ValueError: it belongs to other layers, names or ranks, or to another schedule or protocol.
        """
        if state["schedule"] != asdict(self.schedule) or state["protocol"] != self.protocol:
            raise ValueError("the allocator's state belongs to another schedule or protocol")
        if list(state["names"]) != list(self.layers) or state["mask"].shape != self._mask.shape:
            raise ValueError("the allocator's state belongs to other layers")
        for kept, loaded in ((self._average, state["average"]), (self._uncertainty, state["uncertainty"])):
            if [tensor.shape for tensor in kept] != [tensor.shape for tensor in loaded]:
                raise ValueError("the allocator's state belongs to layers of other shapes")
            for tensor, value in zip(kept, loaded, strict=True):
                tensor.copy_(value)
        self._mask = state["mask"].to(self._mask.device, copy=True)
        self._scores = None

    # -- stacked tensors -------------------------------------------------------------------------------------------

    def _weights(self) -> list[Tensor]:
        return self._stacks(lambda parameter: parameter.detach())

    def _grads(self) -> list[Tensor]:
        if all(layer.lora_B.grad is None for layer in self.layers.values()):
            raise RuntimeError("no layer has a gradient: observe(t) comes after backward and before zero_grad")
        return self._stacks(lambda parameter: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)

    def _stacks(self, get: Callable[[Tensor], Tensor]) -> list[Tensor]:
        return [
            torch.stack([get(getattr(layer, part)) for layer in group])
            for group in self._groups
            for part in self._parts
        ]

    def _score_triplets(self, raw: list[Tensor] | None) -> Tensor:
        """S of every triplet, flat, in the order of ``layers``; levelled where the allocation is uniform."""
        scores = self._own_scores(raw)
        return scores if self.allocation == "global" else importance.level(scores, self._sizes)

    def _own_scores(self, raw: list[Tensor] | None) -> Tensor:
        if self.score == "random":
            return self._random
        if self.score == "magnitude":
            return torch.cat([value.detach().flatten() for value in self._values()]).abs()
        if self.score == "importance":
            entries = importance.smoothed_importance(self._average, self._uncertainty)
        elif self.score == "sensitivity" and self.protocol == "paper" and raw is not None:
            entries = raw
        else:
            entries = self._average
        parts = len(self._parts)
        score = importance.triplet_score if self._triplets else importance.doublet_score
        groups = zip(*(entries[part::parts] for part in range(parts)), strict=True)
        return torch.cat([score(*group).flatten() for group in groups])[self._from_stacks]

    def _values(self) -> list[Tensor]:
        """What a mask zeroes: of triplets Λ, of doublets A and B."""
        masked = ("lora_E",) if self._triplets else ("lora_A", "lora_B")
        return [getattr(layer, part) for part in masked for layer in self.layers.values()]

    def _apply_mask(self) -> None:
        kept = self._mask.to(self._average[0].dtype).unsqueeze(1)  # (N, 1): a slice of it has the shape of a Λ
        masks = list(torch.split(kept, self._ranks))
        if not self._triplets:  # rows of A, columns of B
            masks += [mask.mT for mask in masks]
        torch._foreach_mul_(self._values(), masks)
