"""Tensor operations dispatched per optimizer step, views left out: AdaLoRA against LoRA, ours and PEFT's.

    python benchmarks/operations.py

Setting: a 12-layer DeBERTaV3-base shape (small vocabulary, which changes no count), batch 4 x 32 tokens, rank 12, a
mask at every step. A step is forward, backward, regularizer, clipping, AdamW, importance and mask. The count is a
property of the code, not of the machine; it is what an accelerator's launch queue sees.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import yaml
from torch.utils._python_dispatch import TorchDispatchMode

from adalora_repro import backbones, inject
from adalora_repro.config import resource
from adalora_repro.methods import adalora, lora
from adalora_repro.methods.base import BaseMethod
from adalora_repro.train import add_gradient

BATCH, TOKENS, RANK = 4, 32, 12


class CountOperations(TorchDispatchMode):
    """Counts what reaches the dispatcher, except views (outputs that share memory with an input)."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view and func.overloadpacket is not torch.ops.aten._unsafe_view:
            self.counts[func.name()] += 1
        return func(*args, **(kwargs or {}))


def make_model() -> Any:
    """DeBERTaV3-base with random weights and a vocabulary of 1,000."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    path = resource("conf") / "backbone" / "deberta-v3-base.yaml"
    architecture = yaml.safe_load(Path(path).read_text())["architecture"] | {"vocab_size": 1000}
    torch.manual_seed(0)
    config = AutoConfig.for_model(architecture.pop("model_type"), **architecture, num_labels=2)
    return AutoModelForSequenceClassification.from_config(config)


def make_method(name: str) -> BaseMethod:
    if name == "lora":
        return lora.Method(lora.Options("lora", "lora", r=RANK), "paper")
    options = adalora.Options("adalora", "adalora", init_r=RANK, target_r=8, t_i=0, t_f=10, delta_t=1)
    return adalora.Method(options, "paper")


def count_ours(name: str) -> Counter[str]:
    model, method = make_model(), make_method(name)
    method.inject(model, backbones.find_sites(model))
    method.on_train_start(1000)
    return count_step(model, list(inject.trained(model).values()), method)


def count_peft(name: str) -> Counter[str]:
    """PEFT's layers in the same loop, with its own penalty and ``update_and_allocate`` for AdaLoRA."""
    import peft

    options: dict[str, Any] = {
        "task_type": "SEQ_CLS",
        "target_modules": r".*encoder\.layer\.\d+\..*(query_proj|key_proj|value_proj|dense)",
        "lora_alpha": 16,
    }
    if name == "lora":
        config: Any = peft.LoraConfig(r=RANK, **options)
    else:
        config = peft.AdaLoraConfig(init_r=RANK, target_r=8, tinit=0, tfinal=10, deltaT=1, total_step=1000, **options)
    model = peft.get_peft_model(make_model(), config)
    return count_step(model, [p for p in model.parameters() if p.requires_grad], BaseMethod(), peft_model=model)


def count_step(
    model: Any, parameters: list[torch.nn.Parameter], method: BaseMethod, peft_model: Any = None
) -> Counter[str]:
    """The operations of the third step; two before it create the optimizer's state."""
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, fused=True)
    tokens, labels = torch.randint(0, 1000, (BATCH, TOKENS)), torch.randint(0, 2, (BATCH,))

    def step(t: int) -> None:
        model.train()
        model(input_ids=tokens, attention_mask=torch.ones_like(tokens), labels=labels).loss.backward()
        if (penalty := method.regularizer()) is not None:
            add_gradient(penalty, parameters)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        method.before_update(t)
        optimizer.step()
        method.after_update(t)
        if peft_model is not None and hasattr(peft_model.base_model, "update_and_allocate"):
            peft_model.base_model.update_and_allocate(t)
        optimizer.zero_grad()

    step(1)
    step(2)
    with CountOperations() as counted:
        step(3)
    return counted.counts


def main() -> int:
    counts = {("ours", name): count_ours(name).total() for name in ("lora", "adalora")}
    try:
        counts |= {("peft", name): count_peft(name).total() for name in ("lora", "adalora")}
    except ImportError:
        print("peft is not installed: its columns are left out (pip install peft)", file=sys.stderr)
    base = counts["ours", "lora"]
    print(f"{'':8}{'method':10}{'operations':>11}{'x our LoRA':>12}")
    for (who, name), total in counts.items():
        print(f"{who:8}{name:10}{total:>11,}{total / base:>12.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
