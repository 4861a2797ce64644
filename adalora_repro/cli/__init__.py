"""What a user types: the commands adalora-run, adalora-report and adalora-model."""
