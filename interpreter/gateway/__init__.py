"""Jupyter's clients of a session's kernel."""
