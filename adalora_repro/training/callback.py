"""AdaLoRA in the Trainer of transformers: the allocator is called and the regularizer is trained.

``Trainer`` with a model of PEFT's AdaLoRA does neither by itself: ``update_and_allocate`` is the user's to call, and
without it no triplet is ever pruned.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from adalora_repro.lowrank import BudgetSchedule, RankAllocator, SVDLinear, orthogonality_penalty

STATE = "adalora.pt"  # in each checkpoint of the Trainer


class AdaLoRACallback(TrainerCallback):
    """Algorithm 1 with ``protocol="paper"``, one optimizer step of the Trainer being one step t.

    In step t: gradient of gamma R added to the task loss's, clipping, ``observe(t)``, the optimizer's step,
    ``allocate(t)``. The Trainer clips before a callback can add a gradient: give ``TrainingArguments(max_grad_norm=0)``
    and the norm here. An evaluation, of however many data sets, sees the model at its budget. Every checkpoint gets
    ``adalora.pt``, from which a resumed training goes on.

    Args:
        layers: name -> layer, as ``lowrank.adapt`` returns them.
        target_r: mean rank at the end; b_T = n target_r, b_0 is what the layers have.
        t_i, t_f: optimizer steps before the first mask, and at the end with fixed ranks.
        delta_t: optimizer steps between masks.
        gamma: weight of R, eq. (4).
        max_grad_norm: of all gradients together; 0: no clipping.
        options: further arguments of ``RankAllocator`` (``beta1``, ``beta2``, ``score``, …).

    Attributes:
        allocator: from the start of the training on; ``rank_pattern()`` has the ranks.

    Raises:
        ValueError: ``t_f`` below 1, a negative ``max_grad_norm``; when training starts: from ``BudgetSchedule`` or
            ``RankAllocator``, arguments of the Trainer that do not go with the allocator, or no ``adalora.pt`` to
            resume from.
    """

    def __init__(
        self,
        layers: Mapping[str, SVDLinear],
        target_r: int,
        t_i: int,
        t_f: int,
        delta_t: int = 1,
        gamma: float = 0.1,
        max_grad_norm: float = 1.0,
        **options: Any,
    ) -> None:
        if t_f < 1:
            raise ValueError(f"t_f must be at least 1, not {t_f}: the ranks are fixed at step T - t_f")
        if not max_grad_norm >= 0:  # a negative norm would turn the gradients round
            raise ValueError(f"max_grad_norm must be 0 (no clipping) or more, not {max_grad_norm}")
        self.layers = dict(layers)
        self.target_r, self.t_i, self.t_f, self.delta_t = target_r, t_i, t_f, delta_t
        self.gamma, self.max_grad_norm, self.options = gamma, max_grad_norm, options
        self.allocator: RankAllocator | None = None
        self._masked = ExitStack()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if args.max_grad_norm:
            raise ValueError(
                "the Trainer clips before the regularizer's gradient is added: TrainingArguments(max_grad_norm=0) and "
                f"AdaLoRACallback(max_grad_norm={args.max_grad_norm:g})"
            )
        if args.load_best_model_at_end:
            raise ValueError(
                "load_best_model_at_end=True would bring back a checkpoint from before the final phase, with triplets "
                "beyond the budget: leave it False"
            )
        if args.fp16:
            raise ValueError(
                "with fp16=True a step may overflow; the Trainer skips it, but the averages of the scores would stay "
                "infinite: bf16=True, or neither"
            )
        schedule = BudgetSchedule(
            b_0=sum(layer.r for layer in self.layers.values()),
            b_T=len(self.layers) * self.target_r,
            t_i=self.t_i,
            t_f=self.t_f,
            total_steps=state.max_steps,
        )
        self.allocator = RankAllocator(self.layers, schedule, self.delta_t, protocol="paper", **self.options)
        if state.global_step:
            path = _path(args, state)
            if not path.exists():
                raise ValueError(f"no {path}: resume with the output_dir in which the training began")
            saved = torch.load(path, weights_only=True)
            self.allocator.load_state_dict(saved)
            for name, values in saved.get("lora_E", {}).items():
                self.layers[name].lora_E.data.copy_(values)
        if args.eval_on_start:
            self._masked.enter_context(self.allocator.masked())

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._masked.close()

    on_train_end = on_step_begin

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Gradients are whole: of all micro-batches and processes, unscaled."""
        assert self.allocator is not None
        if self.gamma:
            (self.gamma * orthogonality_penalty(list(self.layers.values()))).backward()
        if self.max_grad_norm:
            parameters = [p for p in kwargs["model"].parameters() if p.grad is not None]
            torch.nn.utils.clip_grad_norm_(parameters, self.max_grad_norm)
        self.allocator.observe(state.global_step)

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        assert self.allocator is not None
        self.allocator.allocate(state.global_step)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if control.should_evaluate:
            assert self.allocator is not None
            self._masked.enter_context(self.allocator.masked())

    on_epoch_end = on_step_end  # with eval_strategy="epoch" the Trainer asks for the evaluation only then

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """After an evaluation the Trainer has saved the masked model: Λ as trained is saved here."""
        assert self.allocator is not None
        self._masked.close()
        if not args.should_save:  # another process does
            return
        values = {name: layer.lora_E.detach().clone() for name, layer in self.layers.items()}
        torch.save(self.allocator.state_dict() | {"lora_E": values}, _path(args, state))


def _path(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(str(args.output_dir)) / f"checkpoint-{state.global_step}" / STATE
