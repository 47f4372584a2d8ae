"""Load datasets from files and the Hub as they are written."""
