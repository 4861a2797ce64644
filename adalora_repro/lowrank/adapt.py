"""AdaLoRA on any model: its linear layers get an increment P Λ Q, everything else is frozen."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence

from torch import nn

from adalora_repro.lowrank.layers import SVDLinear


def adapt(
    model: nn.Module, layers: Sequence[str], r: int, alpha: float, init_std: float = 0.02, trained: Sequence[str] = ()
) -> dict[str, SVDLinear]:
    """Replaces linear layers of ``model`` by ``SVDLinear``, in place, and freezes all other parameters.

    Args:
        layers: patterns (``*`` and ``?``) of module names: ``["*.q_proj", "*.v_proj"]``.
        r, alpha, init_std: of ``SVDLinear``: the rank at the start, the scaling's numerator, initial values.
        trained: patterns of modules that stay trainable, the task head say.

    Returns:
        Module name -> its layer, in the model's order: what ``RankAllocator`` takes.

    Raises:
        ValueError: no pattern, or one that matches no linear layer, or no module; ``model`` is adapted already.
    """
    if isinstance(layers, str) or isinstance(trained, str) or not layers:
        raise ValueError('layers and trained are lists of patterns, ["*.q_proj", "*.v_proj"] say; layers needs one')
    if any(isinstance(module, SVDLinear) for module in model.modules()):
        raise ValueError("the model is adapted already; name all layers in one call")
    linear = [name for name, module in model.named_modules() if name and isinstance(module, nn.Linear)]
    every = [name for name, _ in model.named_modules() if name]
    for pattern, names, what in [(p, linear, "linear layer") for p in layers] + [(p, every, "module") for p in trained]:
        if not fnmatch.filter(names, pattern):
            raise ValueError(f"no {what} matches '{pattern}'")
    model.requires_grad_(False)
    for name in every:
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in trained):
            model.get_submodule(name).requires_grad_(True)
    made = {}
    for name in linear:
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in layers):
            base = model.get_submodule(name)
            assert isinstance(base, nn.Linear)
            parent, _, attribute = name.rpartition(".")
            made[name] = SVDLinear(base, r, alpha, init_std).train(base.training)
            setattr(model.get_submodule(parent), attribute, made[name])
    return made
