"""What a run leaves on disk, how it is checked when it is read, and the rule that chooses a learning rate."""
