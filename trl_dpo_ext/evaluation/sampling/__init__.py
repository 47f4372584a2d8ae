"""Completions drawn from a model, and their sequence KL to a reference."""
