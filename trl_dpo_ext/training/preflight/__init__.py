"""Checks before a run: arguments, data, hardware, adapters, model folders. Nothing expensive has started yet."""
