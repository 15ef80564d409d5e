"""The command line ``interpreter``."""

from interpreter.cli.app import main

__all__ = ["main"]
