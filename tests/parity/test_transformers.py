"""What stands here instead of a function of transformers computes the same."""

import pytest
import torch
from transformers import get_linear_schedule_with_warmup

from adalora_repro.training.runner import share_of_lr


@pytest.mark.parametrize(("warmup", "total"), [(0, 7), (3, 7), (7, 7), (9, 7), (1, 1)])
def test_learning_rate(warmup: int, total: int) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    (theirs,) = get_linear_schedule_with_warmup(optimizer, warmup, total).lr_lambdas
    assert [share_of_lr(t, warmup, total) for t in range(total + 2)] == [theirs(t) for t in range(total + 2)]
