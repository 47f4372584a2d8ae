"""Sweeps: what their runs are, and how they train one after the other on one loaded base model."""
