"""Which triplets of which matrix survive: the allocation half of Algorithm 1."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor

from adalora_repro.lowrank import importance
from adalora_repro.lowrank.layers import SVDLinear, stack_by_shape
from adalora_repro.lowrank.schedule import BudgetSchedule, mask_due

Score = Literal["importance", "sensitivity", "magnitude"]
Protocol = Literal["paper", "released"]


class RankAllocator:
    """Scores all triplets of a model and masks Λ down to the budget b(t), eqs. (5)-(11).

    Call ``observe(t)`` and ``allocate(t)`` once per optimizer step t = 0, 1, …

    * ``protocol="paper"``: ``observe`` before the optimizer's step (the weight and gradient of step t, Algorithm 1),
      ``allocate`` after it. A mask is due when t_i <= t < T - t_f and t % delta_t == 0; the set is fixed at
      t = T - t_f, and that fixed mask is applied after every later step. Exactly b(t) triplets survive.
    * ``protocol="released"``: both after the optimizer's step, as the authors' code does. A mask is due when t > t_i
      and t % delta_t == 0, and at every t > T - t_f; the averages freeze at T - t_f; ties with the threshold fall.

    Pruned λ keep being trained between masks and may come back until the set is fixed.

    ``score`` is S of eq. (7): ``importance`` with s = Ī Ū; ``sensitivity`` with s = I (released: its average Ī, F28);
    ``magnitude`` is S_i = |λ_i|.

    All work is done on tensors stacked by shape; no value is copied to the host in a step.

    Args:
        layers: name -> layer; the order breaks ties and names the ranks.
        schedule: b(t).
        delta_t: steps between two masks.
        beta1, beta2: of the averages, eqs. (9) and (10).

    Raises:
        ValueError: no layers, delta_t < 1, a beta outside [0, 1), more budget than triplets, an unknown score or
            protocol.
    """

    def __init__(
        self,
        layers: Mapping[str, SVDLinear],
        schedule: BudgetSchedule,
        delta_t: int,
        beta1: float = 0.85,
        beta2: float = 0.85,
        score: Score = "importance",
        protocol: Protocol = "paper",
    ) -> None:
        if not layers:
            raise ValueError("the allocator needs at least one layer")
        if delta_t < 1:
            raise ValueError(f"delta_t must be at least 1, not {delta_t}")
        if not (0 <= beta1 < 1 and 0 <= beta2 < 1):
            raise ValueError(f"beta1={beta1} and beta2={beta2} must lie in [0, 1)")
        if score not in ("importance", "sensitivity", "magnitude"):
            raise ValueError(f"unknown score '{score}'; valid: importance, sensitivity, magnitude")
        if protocol not in ("paper", "released"):
            raise ValueError(f"unknown protocol '{protocol}'; valid: paper, released")
        total = sum(layer.r for layer in layers.values())
        if schedule.b_0 > total:
            raise ValueError(f"the initial budget b_0={schedule.b_0} exceeds the {total} triplets of the layers")
        self.layers = dict(layers)
        self.schedule, self.delta_t = schedule, delta_t
        self.beta1, self.beta2 = beta1, beta2
        self.score, self.protocol = score, protocol

        self._groups = stack_by_shape(list(self.layers.values()))
        names = {id(layer): name for name, layer in self.layers.items()}
        self._names = [names[id(layer)] for group in self._groups for layer in group]  # the order of scores and masks
        self._ranks = [layer.r for group in self._groups for layer in group]
        # per group one tensor each for Λ (n, r, 1), P (n, d_out, r) and Q (n, r, d_in), in this order
        self._average = [torch.zeros_like(stacked) for stacked in self._weights()]
        self._uncertainty = [torch.zeros_like(stacked) for stacked in self._weights()]
        self._scores: Tensor | None = None
        self._mask = torch.ones(total, dtype=torch.bool, device=self._average[0].device)
        self._budget = total

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

        Raises:
            RuntimeError: a layer has no gradient (it took no part in the loss).
        """
        if self._fixed(t):
            return
        raw = None
        frozen = self.protocol == "released" and t >= self.schedule.final_step
        if not frozen and self.score != "magnitude":
            raw = importance.sensitivity(self._weights(), self._grads())
            importance.update_averages_(self._average, self._uncertainty, raw, self.beta1, self.beta2)
        if self.mask_due(t):
            self._scores = self._score_triplets(raw)

    @torch.no_grad()
    def allocate(self, t: int) -> None:
        """Zeroes λ of all but b(t) triplets if a mask is due at t (T of eq. 6).

        Raises:
            RuntimeError: ``observe(t)`` was not called.
        """
        if not self.mask_due(t):
            return
        if not self._fixed(t):
            if self._scores is None:
                raise RuntimeError(f"a mask is due at t={t}, but observe({t}) was not called")
            self._budget = self.schedule(t)
            keep = importance.keep_top if self.protocol == "paper" else importance.keep_above_threshold
            self._mask = keep(self._scores, self._budget)
            self._scores = None
        self._apply_mask()

    # -- the result ------------------------------------------------------------------------------------------------

    @property
    def budget(self) -> int:
        """Triplets left by the last mask; all of them before the first. Waits for the device."""
        return int(self._mask.sum())

    def rank_pattern(self) -> dict[str, int]:
        """Layer name -> triplets kept by the last mask, in the order of ``layers``."""
        kept = dict(zip(self._names, (int(m.sum()) for m in self._mask.cpu().split(self._ranks)), strict=True))
        return {name: kept[name] for name in self.layers}

    @contextmanager
    def masked(self) -> Iterator[None]:
        """Inside, Λ is masked as it counts at the budget, whatever was trained since the last mask."""
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
        """Averages, mask and names: all that resuming needs beside the parameters (F40)."""
        return {
            "names": list(self._names),
            "average": [tensor.clone() for tensor in self._average],
            "uncertainty": [tensor.clone() for tensor in self._uncertainty],
            "mask": self._mask.clone(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores ``state_dict``.

        Raises:
            ValueError: it belongs to other layers, names or ranks.
        """
        if list(state["names"]) != self._names or state["mask"].shape != self._mask.shape:
            raise ValueError("the allocator's state belongs to other layers")
        for kept, loaded in ((self._average, state["average"]), (self._uncertainty, state["uncertainty"])):
            if [tensor.shape for tensor in kept] != [tensor.shape for tensor in loaded]:
                raise ValueError("the allocator's state belongs to layers of other shapes")
            for tensor, value in zip(kept, loaded, strict=True):
                tensor.copy_(value)
        self._mask = state["mask"].to(self._mask.device)
        self._scores = None

    # -- stacked tensors -------------------------------------------------------------------------------------------

    def _weights(self) -> list[Tensor]:
        parameters = ((layer.lora_E, layer.lora_B, layer.lora_A) for layer in self._ordered())
        return self._stack([tuple(p.detach() for p in triple) for triple in parameters])

    def _grads(self) -> list[Tensor]:
        triples = []
        for name, layer in zip(self._names, self._ordered(), strict=True):
            grads = (layer.lora_E.grad, layer.lora_B.grad, layer.lora_A.grad)
            if any(grad is None for grad in grads):
                raise RuntimeError(f"no gradient reached '{name}': it takes no part in the loss and cannot be scored")
            triples.append(grads)
        return self._stack(triples)  # type: ignore[arg-type]

    def _ordered(self) -> Iterator[SVDLinear]:
        return (layer for group in self._groups for layer in group)

    def _stack(self, triples: list[tuple[Tensor, ...]]) -> list[Tensor]:
        stacked, start = [], 0
        for group in self._groups:
            part = triples[start : start + len(group)]
            stacked += [torch.stack(tensors) for tensors in zip(*part, strict=True)]
            start += len(group)
        return stacked

    def _score_triplets(self, raw: list[Tensor] | None) -> Tensor:
        """S of every triplet, flat, in the order of ``_names``."""
        if self.score == "magnitude":
            return torch.cat([value.detach().flatten() for value in self._values()]).abs()
        if self.score == "importance":
            entries = importance.smoothed_importance(self._average, self._uncertainty)
        elif self.protocol == "paper" and raw is not None:
            entries = raw
        else:
            entries = self._average
        triples = zip(entries[0::3], entries[1::3], entries[2::3], strict=True)
        return torch.cat([importance.triplet_score(*triple).flatten() for triple in triples])

    def _values(self) -> list[Tensor]:
        return [layer.lora_E for layer in self._ordered()]

    def _apply_mask(self) -> None:
        kept = self._mask.to(self._average[0].dtype).unsqueeze(1).split(self._ranks)
        torch._foreach_mul_(self._values(), list(kept))
