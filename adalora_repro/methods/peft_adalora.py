"""AdaLoRA of HF PEFT, a cross-check of ours: its layers, and its allocator called in every step.

PEFT's ``AdaLoraModel`` adds the regularizer to any loss that its ``forward`` returns: once for every micro-batch, in
evaluations too. Here the model is called without that ``forward``, and R is added once in every optimizer step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from adalora_repro.errors import InputError
from adalora_repro.methods import adalora, peft

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from adalora_repro.models.sites import Site

#: options of ours that PEFT's AdaLoRA does not have, at what it does
FIXED = {"init_std": 0.02, "score": "importance", "allocation": "global"}


@dataclass
class Options(adalora.Options):
    """AdaLoRA's, without a choice of scores, of their allocation and of initial values."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value in FIXED.items():
            if getattr(self, name) != value:
                raise InputError(f"method.{name}: AdaLoRA of HF PEFT has {value} only")
        if not (self.beta1 and self.beta2):
            raise InputError("method.beta1 and method.beta2 must be positive: AdaLoRA of HF PEFT takes no 0")


class Method(peft.Method):
    """``protocol`` changes nothing. As the released code, PEFT scores after the update, freezes the averages at T - t_f
    and keeps the triplets above a threshold; R is the mean over the 2n matrices of

        ||PᵀP - I||_F  and  ||QQᵀ - I||_F.

    With ``budget.match=params`` PEFT's allocator gets the b_T and the initial rank of ours, instead of a multiple of n.
    It counts triplets: what remains has at most N parameters in the mean, not in every run.
    """

    options: Any
    kind = "AdaLoraConfig"

    def values(self, model: PreTrainedModel, matrices: Sequence[Site]) -> dict[str, Any]:
        options = self.options
        modules: list[Any] = [model.get_submodule(site.path) for site in matrices]
        self.costs = [module.out_features + 1 + module.in_features for module in modules]
        n = len(matrices)
        self.b_T, self.init_r = options.ranks(self.costs)
        if n * self.init_r <= self.b_T:
            raise InputError(
                f"method.init_r={self.init_r}: AdaLoRA of HF PEFT needs more than target_r={self.b_T / n:g}"
            )
        return {
            "target_modules": [site.path for site in matrices],
            "init_r": self.init_r,
            "target_r": math.ceil(self.b_T / n),
            "lora_alpha": options.alpha,
            "tinit": options.t_i,
            "tfinal": options.t_f,
            "deltaT": options.delta_t,
            "beta1": options.beta1,
            "beta2": options.beta2,
            "orth_reg_weight": options.gamma,
            "total_step": options.t_i + options.t_f + 1,  # until T is known
        }

    def plan(self, total_steps: int) -> dict[str, Any]:
        plan: dict[str, Any] = self.options.plan(self.costs, self.options.schedule_of(self.costs, total_steps))
        if self.options.params is None:
            return plan
        every = sorted(cost for cost in self.costs for _ in range(self.init_r))
        return plan | {"params_min": sum(every[: self.b_T]), "params_max": sum(every[-self.b_T :])}

    # -- training ------------------------------------------------------------------------------------------------------

    def on_train_start(self, total_steps: int) -> None:
        self.config.total_step = total_steps
        self.tuner.rankallocator.target_bgt = self.b_T
        self.names = [f"{path}.lora_E.{peft.ADAPTER}" for path in self.sites]
        # PEFT sets it with its first mask, and after T - t_f takes it to be there
        self.config.rank_pattern = {name: [True] * self.init_r for name in self.names}

    def regularizer(self) -> Tensor | None:
        gamma = self.options.gamma
        if not gamma:
            return None
        norms = []
        for layer in self.layers().values():
            for rows in (layer.lora_A[peft.ADAPTER], layer.lora_B[peft.ADAPTER].T):
                norms.append(torch.linalg.matrix_norm(rows @ rows.T - torch.eye(len(rows), device=rows.device)))
        return gamma * torch.stack(norms).mean()

    def after_update(self, t: int) -> None:
        self.tuner.update_and_allocate(t)

    def at_final_budget(self, t: int) -> bool:
        return t >= self.config.total_step - self.options.t_f

    def allocates(self, t: int) -> bool:
        final_step = self.config.total_step - self.options.t_f
        return t == final_step or (t < final_step and self.tuner.rankallocator.budget_schedule(t)[1])

    def curve(self, t: int) -> dict[str, Any]:
        return {"b_t": self.tuner.rankallocator.budget_schedule(t)[0]}

    # -- resuming and the record ---------------------------------------------------------------------------------------

    def pattern(self) -> dict[str, Tensor]:
        """Name of Λ -> which of its triplets are kept, (init_r,) bool."""
        return {name: torch.tensor(self.config.rank_pattern[name]) for name in self.names}

    def state_dict(self) -> dict[str, Any]:
        allocator = self.tuner.rankallocator
        factors = {n: p.detach() for n, p in self.tuner.model.named_parameters() if "lora_" in n}
        averages = {  # PEFT makes them in the first step and drops them at T - t_f
            which: {name: getattr(allocator, which).get(name, torch.zeros_like(p)) for name, p in factors.items()}
            for which in ("exp_avg_ipt", "exp_avg_unc")
        }
        return {**averages, "rank_pattern": self.pattern()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        allocator = self.tuner.rankallocator
        for which in ("exp_avg_ipt", "exp_avg_unc"):
            values = {n: p for n, p in self.tuner.model.named_parameters() if "lora_" in n}
            setattr(allocator, which, {n: state[which][n].to(p.device) for n, p in values.items()})
        allocator.ipt = dict.fromkeys(allocator.exp_avg_ipt)  # a name that is there keeps its averages
        self.config.rank_pattern = {name: mask.tolist() for name, mask in state["rank_pattern"].items()}

    def summary(self) -> dict[str, Any]:
        ranks = [int(mask.sum()) for mask in self.pattern().values()]
        return {
            "rank_pattern": dict(zip((site.name for site in self.sites.values()), ranks, strict=True)),
            "params": sum(rank * cost for rank, cost in zip(ranks, self.costs, strict=True)),
        }
