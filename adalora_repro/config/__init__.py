"""What a run is: the typed schema of its settings, and the plan that follows from them."""
