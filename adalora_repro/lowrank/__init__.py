"""AdaLoRA itself: torch only, no transformers, no configuration, no files."""

from adalora_repro.lowrank.adapt import adapt
from adalora_repro.lowrank.allocator import RankAllocator
from adalora_repro.lowrank.layers import LoRALinear, SVDLinear
from adalora_repro.lowrank.orthogonality import orthogonality_penalty
from adalora_repro.lowrank.schedule import BudgetSchedule

__all__ = ["BudgetSchedule", "LoRALinear", "RankAllocator", "SVDLinear", "adapt", "orthogonality_penalty"]
