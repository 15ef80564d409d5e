"""Whole notebooks, run in a session."""
