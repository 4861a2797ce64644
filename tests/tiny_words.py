"""Words of adalora-run for a run that takes a second; imports nothing, for tests that start programs of their own."""

TINY = (
    "backbone=tiny-bert",
    "task.max_length=32",
    "data=sample",
    "data.sample_rows=64",
    "data.sample_validation_rows=32",
    "train.batch_size=8",
    "train.log_steps=2",
    "train.device=cpu",
    "method.schedule=scaled",
)
