"""Safety of a run: checkpoints that are whole, exact resuming, and a guard that stops runs that learn nothing."""
