"""AdaLoRA at the cost of LoRA: operations per step, counted by the benchmark."""

from benchmarks.operations import count_ours


def test_adalora_dispatches_at_most_15_percent_more_operations_than_lora():
    lora, adalora = count_ours("lora"), count_ours("adalora")
    assert adalora.total() <= 1.15 * lora.total(), adalora - lora
    # no value is read back to the host in a step
    assert not {name for name in adalora if "local_scalar_dense" in name}
