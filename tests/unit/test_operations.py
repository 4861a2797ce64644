"""AdaLoRA at the cost of LoRA: operations per step, counted by the benchmark."""

import torch

from adalora_repro.train import add_gradient
from benchmarks.operations import count


def test_adalora_dispatches_at_most_5_percent_more_operations_than_lora():
    lora, adalora = count("ours", "lora"), count("ours", "adalora")
    assert adalora.total() <= 1.05 * lora.total(), adalora - lora
    # no value is read back to the host in a step
    assert not {name for name in adalora if "local_scalar_dense" in name}


def test_added_gradient_is_what_backward_would_add_to_the_last_bit():
    torch.manual_seed(0)
    first, second, unused = (torch.nn.Parameter(torch.randn(3)) for _ in range(3))

    def loss() -> torch.Tensor:
        return (first * second).square().sum()

    for parameter in (first, unused):
        parameter.grad = torch.ones(3)
    add_gradient(loss(), [first, second, unused])
    added = [first.grad, second.grad, unused.grad]
    first.grad, second.grad = torch.ones(3), None
    loss().backward()
    assert torch.equal(added[0], first.grad)
    assert torch.equal(added[1], second.grad)
    assert torch.equal(added[2], torch.ones(3))
