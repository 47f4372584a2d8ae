"""Reward against KL: recorded during training, then compared between runs."""
