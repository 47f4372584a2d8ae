"""Rewards score a completion; judges compare two. Both are found by name."""
