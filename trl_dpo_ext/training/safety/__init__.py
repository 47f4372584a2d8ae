"""Safety of a run: atomic checkpoints, exact resuming, and a guard that stops runs that learn nothing."""
