"""Importance of a triplet, eqs. (7)-(11), and who survives, eq. (6): functions of tensors only.

The averages work on lists of tensors with ``torch._foreach_*``, so that one call serves all matrices of a model.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Tensors = list[Tensor]


def sensitivity(weights: Tensors, grads: Tensors) -> list[Tensor]:
    """I(w) = |w ∇_w L| for every entry, eq. (8)."""
    products = torch._foreach_mul(weights, grads)
    torch._foreach_abs_(products)
    return list(products)


def gradient_size(grads: Tensors) -> list[Tensor]:
    """|∇_w L| for every entry: ``sensitivity`` without the weight."""
    return list(torch._foreach_abs(grads))


def update_averages_(average: Tensors, uncertainty: Tensors, current: Tensors, beta1: float, beta2: float) -> None:
    """Ī ← β1 Ī + (1 - β1) I, eq. (9); then Ū ← β2 Ū + (1 - β2) |I - Ī| with the new Ī, eq. (10). In place.

    Ū may be stored in bf16: it is computed in the precision of Ī and rounded once.
    """
    torch._foreach_lerp_(average, current, 1 - beta1)
    deviation = torch._foreach_sub(current, average)
    torch._foreach_abs_(deviation)
    computed = [old.to(new.dtype) for old, new in zip(uncertainty, deviation, strict=True)]  # itself, if not bf16
    torch._foreach_lerp_(computed, deviation, 1 - beta2)
    if computed[0] is not uncertainty[0]:
        torch._foreach_copy_(uncertainty, computed)


def smoothed_importance(average: Tensors, uncertainty: Tensors) -> list[Tensor]:
    """s = Ī Ū for every entry, eq. (11)."""
    return list(torch._foreach_mul(average, uncertainty))


def triplet_score(s_E: Tensor, s_P: Tensor, s_Q: Tensor) -> Tensor:
    """S_k,i = s(λ_k,i) + mean_j s(P_k,ji) + mean_j s(Q_k,ij), eq. (7).

    Args:
        s_E: (…, r, 1); s_P: (…, d_out, r); s_Q: (…, r, d_in).

    Returns:
        (…, r). The means keep the score from growing with the size of the matrix.
    """
    return s_E.squeeze(-1) + s_P.mean(-2) + s_Q.mean(-1)


def doublet_score(s_B: Tensor, s_A: Tensor) -> Tensor:
    """S_k,i = mean_j s(B_k,ji) + mean_j s(A_k,ij): eq. (7) for LoRA's doublets, which have no λ.

    Args:
        s_B: (…, d_out, r); s_A: (…, r, d_in).

    Returns:
        (…, r).
    """
    return s_B.mean(-2) + s_A.mean(-1)


def level(scores: Tensor, ranks: Tensor | Sequence[int]) -> Tensor:
    """Whole numbers as scores that share any budget evenly among the matrices: N for the first to be kept down to 1.

    The best of every matrix come first, then the second best, and so on; among those of one position the better score,
    of equal ones the earlier. A budget of n r thus keeps r of each of n matrices, one in between one more of some.

    Args:
        scores: (N,), matrix after matrix.
        ranks: how many each matrix has, N in all; a tensor on the scores' device, or else the host waits for it.
    """
    sizes = torch.as_tensor(ranks, device=scores.device)
    matrix = torch.repeat_interleave(sizes, output_size=len(scores))
    first = torch.repeat_interleave(sizes.cumsum(0) - sizes, sizes, output_size=len(scores))
    best_first = torch.argsort(scores, descending=True, stable=True)
    by_matrix = best_first[torch.argsort(matrix[best_first], stable=True)]
    position = torch.empty_like(matrix)
    position[by_matrix] = torch.arange(len(scores), device=scores.device) - first
    order = best_first[torch.argsort(position[best_first], stable=True)]
    levelled = torch.empty_like(matrix)
    levelled[order] = torch.arange(len(scores), 0, -1, device=scores.device)
    return levelled


def keep_top(scores: Tensor, budget: int) -> Tensor:
    """Mask of exactly ``budget`` of the scores (N,), the largest; of equal ones the first survive, eq. (6)."""
    order = torch.argsort(scores, descending=True, stable=True)
    return torch.zeros_like(scores, dtype=torch.bool).index_fill_(0, order[:budget], True)


def keep_within(scores: Tensor, costs: Tensor, params: int, kinds: int) -> Tensor:
    """Mask of the scores (N,) kept when parameters are counted, not triplets: the largest first, each if it fits.

    Going down the scores, an entry stays if its cost and the costs of those that stay before it do not exceed
    ``params``; so no pruned entry would still fit. Of equal scores the first go first. Waits for no device.

    Args:
        costs: (N,), parameters of each entry.
        kinds: how many different costs there are.
    """
    order = torch.argsort(scores, descending=True, stable=True)
    cost = costs[order]
    stays = torch.ones_like(cost, dtype=torch.bool)
    position = torch.arange(len(cost), device=cost.device)
    for _ in range(kinds):
        # behind the first that does not fit nothing of its cost or more fits either: one kind less in each round
        over = stays & (torch.cumsum(cost * stays, 0) > params)
        first = over.int().argmax(keepdim=True)  # (1,): an index of no dimension would be fetched by the host
        stays &= ~(over.any() & (position >= first) & (cost >= cost.index_select(0, first)))
    return torch.zeros_like(stays).index_copy_(0, order, stays)


def keep_level(levelled: Tensor, costs: Tensor, params: int, kinds: int, most: int) -> Tensor:
    """``keep_within`` for the scores of ``level``, limited to the ``most`` best: every matrix keeps s or s + 1.

    Without the limit, a cheap triplet of a further level would take the rest of the budget where a costlier one of this
    level does not fit.

    Args:
        levelled: (N,), from N for the first to be kept down to 1.
        most: (s + 1) n triplets, where s is the largest rank for which all n matrices fit into ``params``.
    """
    within = torch.where(levelled > len(levelled) - most, costs, params + 1)
    return keep_within(levelled, within, params, kinds + 1)


def keep_above_threshold(scores: Tensor, budget: int) -> Tensor:
    """The released code's rule: all scores above the (N - budget)-th smallest survive.

    Entries equal to it are pruned, too, so fewer than ``budget`` may survive. With nothing to prune, where the
    released code raises, all survive (docs/deviations.md, row 9).
    """
    pruned = scores.numel() - budget
    if pruned <= 0:
        return torch.ones_like(scores, dtype=torch.bool)
    return scores > torch.kthvalue(scores, pruned).values
