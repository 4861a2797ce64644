"""One run, from its plan to its record: the loop, evaluation, checkpoints, processes, and the measurement of cost."""
