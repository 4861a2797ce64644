"""One optimizer step of LoRA or AdaLoRA, ours or PEFT's, on a backbone with random weights, for benchmarks."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from adalora_repro.config.catalog import read, resource
from adalora_repro.methods import adalora, lora
from adalora_repro.methods.base import BaseMethod
from adalora_repro.models import speedups
from adalora_repro.models.sites import find_sites, has_relative_positions, head_parameters
from adalora_repro.training.cost import wait_for
from adalora_repro.training.loop import add_gradient
from benchmarks.lengths import VOCABULARY, Tensors, tensors

RANK, FINAL_RANK = 12, 8  # of every adapted matrix; AdaLoRA starts at the first and ends, on average, at the second
TARGET = 32  # length of the summaries of an encoder-decoder, in tokens


def architecture(shape: str) -> dict[str, Any]:
    """The architecture in ``conf/backbone/SHAPE.yaml``."""
    return dict(read(resource("conf") / "backbone" / f"{shape}.yaml")["architecture"])


def can_crop(shape: str) -> bool:
    """Whether ``train.attention=cropped`` applies to it."""
    return has_relative_positions(architecture(shape))


def make_model(shape: str = "deberta-v3-base", vocabulary: int | None = VOCABULARY, device: str = "cpu") -> Any:
    """The backbone with random weights: a classifier of two classes, or an encoder-decoder that writes text.

    ``vocabulary``: size of the vocabulary, which costs a step no time; None: the true one.
    """
    from transformers import AutoConfig, AutoModelForSeq2SeqLM, AutoModelForSequenceClassification

    sizes = architecture(shape) | ({} if vocabulary is None else {"vocab_size": vocabulary})
    torch.manual_seed(0)
    kind = "single_label_classification"  # else transformers infers it from the labels, in every step
    config = AutoConfig.for_model(sizes.pop("model_type"), **sizes, num_labels=2, problem_type=kind)
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForSequenceClassification
    with torch.device(device):  # a GPU draws the weights in no time
        return auto.from_config(config)


def our_method(name: str, delta_t: int) -> BaseMethod:
    """``lora`` or ``adalora``; AdaLoRA prunes from the first step on, every ``delta_t`` steps."""
    if name == "lora":
        return lora.Method(lora.Options("lora", "lora", r=RANK), "paper")
    options = adalora.Options("adalora", "adalora", init_r=RANK, target_r=FINAL_RANK, t_i=0, t_f=10, delta_t=delta_t)
    return adalora.Method(options, "paper")


def peft_model(name: str, model: Any, delta_t: int) -> Any:
    import peft

    targets = [site.path for site in lora.Options("lora", "lora", r=RANK).matrices(find_sites(model))]
    head = sorted({name.rpartition(".")[0] for name in head_parameters(model)})  # trained, as in our methods
    common: dict[str, Any] = {"target_modules": targets, "modules_to_save": head, "lora_alpha": 16}
    common |= {"task_type": "SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "SEQ_CLS"}
    if name == "lora":
        return peft.get_peft_model(model, peft.LoraConfig(r=RANK, **common))
    phases = {"tinit": 0, "tfinal": 10, "deltaT": delta_t, "total_step": 100_000}
    return peft.get_peft_model(model, peft.AdaLoraConfig(init_r=RANK, target_r=FINAL_RANK, **phases, **common))


@dataclass
class Contender:
    """A model that is trained one step at a time.

    Attributes:
        who: ``ours`` or ``peft``; ``name``: ``lora`` or ``adalora``.
        bf16: autocast; ours then also keeps its frozen weights in bf16.
        eager: ``train.attention=eager``.
        as_on_device: apply the runner's changes for accelerators on a CPU, too.
    """

    who: str
    name: str
    bf16: bool = False
    eager: bool = False
    shape: str = "deberta-v3-base"
    delta_t: int = 1
    device: str = "cpu"
    vocabulary: int | None = VOCABULARY
    as_on_device: bool = False
    t: int = 0
    times: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        model = make_model(self.shape, self.vocabulary, self.device)
        self.method = BaseMethod(None, "paper")  # PEFT's models need none
        self.peft: Any = None
        if self.who == "ours":
            self.method = our_method(self.name, self.delta_t)
            self.method.inject(model, find_sites(model))
            if not self.eager and can_crop(self.shape):
                speedups.crop_positions(model)
            if self.device != "cpu" or self.as_on_device:
                speedups.use_4d_masks(model)
                speedups.cache_positions(model)
            if self.bf16:
                speedups.store_frozen(model, torch.bfloat16)
        else:
            model = peft_model(self.name, model, self.delta_t)
            self.peft = model.base_model if hasattr(model.base_model, "update_and_allocate") else None
        self.model = model.to(self.device)
        self.method.on_train_start(100_000)
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-4, fused=True)

    @property
    def label(self) -> str:
        return f"{self.who} {self.name}{' eager' * self.eager} {'bf16' if self.bf16 else 'fp32'}"

    def batch(self, lengths: Sequence[int], seed: int) -> Tensors:
        """A batch with examples of these lengths, on the model's device."""
        target = TARGET if self.model.config.is_encoder_decoder else None
        made = tensors(lengths, seed, target)
        return {name: value.to(self.device) for name, value in made.items()}

    def loss(self, batch: Tensors) -> torch.Tensor:
        """Mean cross entropy; PEFT's AdaLoRA adds its penalty to it."""
        if self.who == "peft":
            return self.model(**batch).loss
        inputs: dict[str, Any] = {name: value for name, value in batch.items() if name != "labels"}
        if batch["labels"].ndim > 1:
            inputs |= {"decoder_input_ids": batch["labels"], "use_cache": False}
        logits = self.model(**inputs).logits
        return torch.nn.functional.cross_entropy(logits.flatten(0, -2).float(), batch["labels"].flatten())

    def step(self, batch: Tensors) -> None:
        """One optimizer step, in the order of ``training/loop.py`` and of PEFT's examples."""
        self.model.train()
        with torch.autocast(self.device, torch.bfloat16, enabled=self.bf16):
            loss = self.loss(batch)
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

    def timed(self, batch: Tensors) -> float:
        """Seconds of one step, until the device has finished it."""
        device = torch.device(self.device)
        wait_for(device)
        began = time.perf_counter()
        self.step(batch)
        wait_for(device)
        return time.perf_counter() - began


def in_turn(contenders: Sequence[Contender], number: int) -> list[Contender]:
    """The order of the contenders in round ``number``."""
    first = number % len(contenders)
    order = [*contenders[first:], *contenders[:first]]
    return order if number % 2 else order[::-1]
