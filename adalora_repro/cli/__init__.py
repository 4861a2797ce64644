"""What a user types: the commands adalora-run and adalora-report."""
