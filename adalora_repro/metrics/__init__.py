"""The figures of merit of the tasks."""
