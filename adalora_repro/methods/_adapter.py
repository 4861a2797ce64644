"""The bottleneck both adapter methods insert."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from adalora_repro.methods.base import BaseOptions, require_positive


@dataclass
class AdapterOptions(BaseOptions):
    """``d``: bottleneck width, from the budget; ``init_std``: of both projections (biases start at 0, fidelity F26)."""

    d: int = 0
    init_std: float = 0.02

    def __post_init__(self) -> None:
        require_positive(self, "d", "init_std")


class Adapter(nn.Module):
    """y = x + W_up φ(W_down x + b_down) + b_up, 2 width d + d + width parameters.

    Args:
        width: of the hidden states, the last dimension of x.
        d: bottleneck width.
        activation: φ.
        init_std: W ~ N(0, init_std²); biases 0.
    """

    def __init__(self, width: int, d: int, activation: Callable[[Tensor], Tensor], init_std: float) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width, d), nn.Linear(d, width)
        self.activation = activation
        for linear in (self.down, self.up):
            nn.init.normal_(linear.weight, std=init_std)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.up(self.activation(self.down(x)))
        return out
