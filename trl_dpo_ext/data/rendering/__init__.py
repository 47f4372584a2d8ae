"""Prompts and responses as the chat template prints them."""
