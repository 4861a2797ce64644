"""What the benchmarks compare: an optimizer step of a method, ours or PEFT's, on a backbone's shape, random weights."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml

from adalora_repro.config.catalog import resource
from adalora_repro.methods import adalora, lora
from adalora_repro.methods.base import BaseMethod
from adalora_repro.models import backbones, speedups
from adalora_repro.training.cost import wait_for
from adalora_repro.training.loop import add_gradient
from benchmarks.lengths import VOCABULARY, Tensors, cut, tensors

RANK = 12  # of every matrix at the start
TARGET = 32  # tokens of the summary that an encoder-decoder writes


def architecture(shape: str) -> dict[str, Any]:
    """Of a file of conf/backbone."""
    read = yaml.safe_load(Path(resource("conf") / "backbone" / f"{shape}.yaml").read_text(encoding="utf-8"))
    found: dict[str, Any] = read["architecture"]
    return found


def can_crop(shape: str) -> bool:
    """Whether ``train.attention=cropped`` is for it."""
    return bool(architecture(shape)["model_type"] == "deberta-v2")


def make_model(shape: str = "deberta-v3-base", vocabulary: int | None = VOCABULARY, layers: int | None = None) -> Any:
    """The shape of conf/backbone with random weights, for two classes or, an encoder-decoder, to write text.

    ``vocabulary``: tokens, few because they cost no time in a step; None: as many as the true one. ``layers``: of the
    encoder, None: as many as the true one.
    """
    from transformers import AutoConfig, AutoModelForSeq2SeqLM, AutoModelForSequenceClassification

    changes = {"vocab_size": vocabulary, "num_hidden_layers": layers}
    sizes = architecture(shape) | {name: value for name, value in changes.items() if value is not None}
    torch.manual_seed(0)
    config = AutoConfig.for_model(sizes.pop("model_type"), **sizes, num_labels=2)
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForSequenceClassification
    return auto.from_config(config)


def final_rank(rank: int) -> int:
    """AdaLoRA's at the end, two thirds of that at the start."""
    return max(1, rank * 2 // 3)


def our_method(name: str, rank: int = RANK, delta_t: int = 1) -> BaseMethod:
    """``lora`` or ``adalora``; AdaLoRA is in its pruning phase from the first step on, a mask every ``delta_t``."""
    if name == "lora":
        return lora.Method(lora.Options("lora", "lora", r=rank), "paper")
    options = adalora.Options(
        "adalora", "adalora", init_r=rank, target_r=final_rank(rank), t_i=0, t_f=10, delta_t=delta_t
    )
    return adalora.Method(options, "paper")


def adapted(model: Any) -> list[str]:
    """Paths of the matrices that LoRA and AdaLoRA adapt."""
    return [site.path for site in lora.Options("lora", "lora", r=RANK).matrices(backbones.find_sites(model))]


def peft_model(name: str, model: Any, rank: int = RANK, delta_t: int = 1) -> Any:
    import peft

    targets = adapted(model)
    head = sorted({name.rpartition(".")[0] for name in backbones.head_parameters(model)})  # trains, as ours does
    common: dict[str, Any] = {"target_modules": targets, "modules_to_save": head, "lora_alpha": 16}
    common |= {"task_type": "SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "SEQ_CLS"}
    if name == "lora":
        return peft.get_peft_model(model, peft.LoraConfig(r=rank, **common))
    phases = {"tinit": 0, "tfinal": 10, "deltaT": delta_t, "total_step": 100_000}
    return peft.get_peft_model(model, peft.AdaLoraConfig(init_r=rank, target_r=final_rank(rank), **phases, **common))


@dataclass
class Contender:
    """A model that trains one step at a time.

    Attributes:
        who: ``ours`` or ``peft``; ``name``: ``lora`` or ``adalora``.
        bf16: autocast; ours then keeps its frozen weights in bf16, unless ``stored`` is false.
        cropped: ``train.attention=cropped``; ``compiler``: ``train.compile``.
        as_on_device: with what ``session.build`` does for an accelerator alone.
    """

    who: str
    name: str
    bf16: bool = False
    cropped: bool = False
    stored: bool = True
    compiler: str | None = None
    shape: str = "deberta-v3-base"
    delta_t: int = 1
    rank: int = RANK
    device: str = "cpu"
    vocabulary: int | None = VOCABULARY
    as_on_device: bool = False
    layers: int | None = None
    t: int = 0
    times: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        model = make_model(self.shape, self.vocabulary, self.layers)
        self.method = BaseMethod()
        self.peft: Any = None
        if self.who == "ours":
            self.method = our_method(self.name, self.rank, self.delta_t)
            self.method.inject(model, backbones.find_sites(model))
            if self.cropped:
                speedups.crop_positions(model)
            if self.device != "cpu" or self.as_on_device:
                speedups.mask_without_looking(model)
                speedups.positions_at_hand(model)
            if self.bf16 and self.stored:
                speedups.store_frozen(model, torch.bfloat16)
        else:
            model = peft_model(self.name, model, self.rank, self.delta_t)
            self.peft = model.base_model if hasattr(model.base_model, "update_and_allocate") else None
        self.model = model.to(self.device)
        self.forward: Any = speedups.compiled(self.model, self.compiler) if self.compiler else self.model
        self.method.compiled = bool(self.compiler)
        self.method.on_train_start(100_000)
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-4, fused=True)

    @property
    def label(self) -> str:
        way = ["cropped"] * self.cropped + ["compiled"] * bool(self.compiler) + ["bf16" if self.bf16 else "fp32"]
        return " ".join([self.who, self.name, *way])

    def batch(self, lengths: Sequence[int], seed: int, padded_to: int | None = None) -> Tensors:
        """A batch that this model can train on, on its device."""
        target = TARGET if self.model.config.is_encoder_decoder else None
        made = tensors(lengths, seed, padded_to, target)
        return {name: value.to(self.device) for name, value in made.items()}

    def parts(self, lengths: Sequence[int], seed: int, pass_tokens: int | None) -> list[Tensors]:
        """A step's micro-batches: its examples cut with ``batches.by_length``, or (None) all in one."""
        parts = [list(range(len(lengths)))] if pass_tokens is None else cut(lengths, pass_tokens)
        return [self.batch([lengths[i] for i in part], seed + part[0]) for part in parts]

    def loss(self, batch: Tensors) -> torch.Tensor:
        """Mean cross entropy: ours as the tasks compute it, PEFT's as the model does, for AdaLoRA adds its penalty."""
        if self.who == "peft":
            return self.model(**batch).loss
        inputs: dict[str, Any] = {name: value for name, value in batch.items() if name != "labels"}
        if batch["labels"].ndim > 1:
            inputs |= {"decoder_input_ids": batch["labels"], "use_cache": False}
        logits = self.forward(**inputs).logits
        return torch.nn.functional.cross_entropy(logits.flatten(0, -2).float(), batch["labels"].flatten())

    def step(self, *parts: Tensors) -> None:
        """One optimizer step on a batch, or on its micro-batches, as train.py and PEFT's examples have it.

        Forward, backward, regularizer, clipping, AdamW, importance, mask.
        """
        self.model.train()
        examples = sum(len(part["labels"]) for part in parts)
        for part in parts:
            with torch.autocast(self.device, torch.bfloat16, enabled=self.bf16):
                loss = self.loss(part) * (len(part["labels"]) / examples)
            loss.backward()
        if (penalty := self.method.regularizer()) is not None:
            add_gradient(penalty, self.parameters)
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.method.before_update(self.t)
        self.optimizer.step()
        self.method.after_update(self.t)
        if self.peft is not None:
            self.peft.update_and_allocate(self.t)
        self.optimizer.zero_grad()
        self.t += 1

    def warm_up(self, steps: Sequence[Sequence[Tensors]]) -> None:
        """Steps that nobody times: on an accelerator all of them, for each new length costs it something once.

        On a CPU a micro-batch is enough, for the optimizer's states.
        """
        for parts in steps if self.device != "cpu" else [steps[-1][:1]]:
            self.step(*parts)

    def timed(self, *parts: Tensors) -> float:
        """Seconds of one step, the device waited for."""
        device = torch.device(self.device)
        wait_for(device)
        began = time.perf_counter()
        self.step(*parts)
        wait_for(device)
        return time.perf_counter() - began
