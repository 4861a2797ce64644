"""Products of bf16 matrices on CPUs without bf16 instructions: ``speedups.Bf16ProductsInFp32``."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_runs
import torch
import torch.nn.functional as F
from torch import Tensor

from adalora_repro.models import speedups
from adalora_repro.records import provenance
from adalora_repro.training import runner
from adalora_repro.training.loop import step

#: names of PyTorch's other operations that multiply matrices
OTHER_PRODUCTS = ("mv", "dot", "addbmm", "addmv", "einsum", "convolution", "conv1d", "_flash", "_efficient", "bilinear")


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).bfloat16()


CASES: dict[str, tuple[Callable[..., Tensor], list[Tensor]]] = {
    "mm": (torch.mm, [numbers(7, 33), numbers(33, 5, seed=1)]),
    "addmm": (torch.addmm, [numbers(5), numbers(7, 33, seed=1), numbers(33, 5, seed=2)]),
    "bmm": (torch.bmm, [numbers(3, 7, 33), numbers(3, 33, 5, seed=1)]),
    "baddbmm": (torch.baddbmm, [numbers(3, 7, 5), numbers(3, 7, 33, seed=1), numbers(3, 33, 5, seed=2)]),
    "linear": (F.linear, [numbers(2, 7, 33), numbers(5, 33, seed=1), numbers(5, seed=2)]),
    "matmul": (torch.matmul, [numbers(2, 3, 7, 33), numbers(2, 3, 33, 5, seed=1)]),
    "attention": (F.scaled_dot_product_attention, [numbers(2, 3, 7, 8, seed=seed) for seed in range(3)]),
}


@pytest.mark.parametrize("inference", [False, True], ids=["training", "inference"])
@pytest.mark.parametrize("name", CASES)
def test_a_product_is_the_exact_one_rounded_once(name: str, inference: bool) -> None:
    product, operands = CASES[name]
    with torch.inference_mode(inference), speedups.Bf16ProductsInFp32():
        computed = product(*operands)
    exact = product(*[operand.double() for operand in operands])
    assert computed.dtype is torch.bfloat16
    # half a unit in the last of 8 significant bits, and what fp32's sums add: less than a hundredth of it
    torch.testing.assert_close(computed.double(), exact, rtol=1.01 * 2**-8, atol=1e-5)


def test_gradients_are_rounded_products_too() -> None:
    x, weight = numbers(2, 7, 8), numbers(8, 8, seed=1) / 4  # no sharp softmax, which would magnify what is rounded
    mask = torch.ones(7, 7, dtype=torch.bool).tril()

    def loss(x: Tensor, weight: Tensor) -> Tensor:
        y = F.linear(x, weight)
        return F.scaled_dot_product_attention(y[:, None], y[:, None], y[:, None], attn_mask=mask).float().square().sum()

    leaves = [x.clone().requires_grad_(), weight.clone().requires_grad_()]
    with speedups.Bf16ProductsInFp32():
        loss(*leaves).backward()
    exact = [x.double().requires_grad_(), weight.double().requires_grad_()]
    loss(*exact).backward()
    for ours, theirs in zip(leaves, exact, strict=True):
        assert ours.grad.dtype is torch.bfloat16
        assert (ours.grad.double() - theirs.grad).norm() < 0.02 * theirs.grad.norm()


def test_gradients_of_attention_are_as_exact_as_pytorchs_own() -> None:
    *operands, received = (numbers(1, 2, 128, 16, seed=seed) for seed in range(4))

    def gradients(dtype: torch.dtype) -> list[Tensor]:
        leaves = [operand.to(dtype, copy=True).requires_grad_() for operand in operands]
        F.scaled_dot_product_attention(*leaves).backward(received.to(dtype))
        return [leaf.grad.double() for leaf in leaves if leaf.grad is not None]

    exact, theirs = gradients(torch.float64), gradients(torch.bfloat16)
    with speedups.Bf16ProductsInFp32():
        ours = gradients(torch.bfloat16)
    for own, other, true in zip(ours, theirs, exact, strict=True):
        assert (own - true).norm() < 1.2 * (other - true).norm()


def test_other_precisions_are_left_alone() -> None:
    x, weight = torch.randn(7, 33), torch.randn(5, 33)
    with speedups.Bf16ProductsInFp32():
        assert torch.equal(F.linear(x, weight), x @ weight.T)
        assert (numbers(3) + numbers(3, seed=1)).dtype is torch.bfloat16


@pytest.mark.parametrize("backbone", ["tiny-bert", "tiny-deberta", "tiny-bart"])
@pytest.mark.parametrize("instructions", [False, True], ids=["without", "with"])
def test_a_step_has_no_other_product(
    backbone: str, instructions: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU without the instructions; with them, nothing is done differently."""
    monkeypatch.setattr(provenance, "has_bf16_instructions", lambda: instructions)
    words = ["task=xsum", "budget=2.20%"] if backbone == "tiny-bart" else ["task=sst2", "budget=0.3M"]
    run = tiny_runs.built(tmp_path, *words, "method=adalora", f"backbone={backbone}", "train.precision=bf16")
    seen: set[str] = set()

    class Listening(speedups.Bf16ProductsInFp32):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if any(isinstance(x, Tensor) and x.dtype is torch.bfloat16 for x in args):
                seen.add(func)
            return super().__torch_dispatch__(func, types, args, kwargs)

    if run.products is speedups.Bf16ProductsInFp32:
        run.products = Listening
    batch = next(iter(runner.first_batches(run)))
    before = {name: p.detach().clone() for name, p in run.model.named_parameters() if p.requires_grad}
    run.log_due = True
    step(run, [batch])
    assert any(not torch.equal(before[name], p) for name, p in run.model.named_parameters() if name in before)
    assert bool(seen & speedups.PRODUCTS) is not instructions
    assert not [func for func in seen - speedups.PRODUCTS if any(name in str(func) for name in OTHER_PRODUCTS)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model name\t: A\nflags\t\t: fpu avx2 avx512_bf16\n", True),
        ("flags\t\t: amx_bf16 fpu\n", True),
        ("Features\t: fp asimd bf16\n", True),
        ("flags\t\t: fpu avx avx2\n", False),
        ("flags\t\t: fpu avx512_bf16x\n", False),
        ("nothing of the kind\n", None),
    ],
)
def test_bf16_instructions_are_read_from_the_flags_of_a_cpu(text: str, expected: bool | None, tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(text, encoding="utf-8")
    assert provenance.has_bf16_instructions(tmp_path / "cpuinfo") is expected
    assert provenance.has_bf16_instructions(tmp_path / "none") is None
