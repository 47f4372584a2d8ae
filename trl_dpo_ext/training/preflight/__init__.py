"""Checks of arguments, data, hardware, adapters and model folders, run before anything expensive."""
