"""A context's name, as the routes take it."""

from typing import Annotated, Final

from fastapi import Path

from kernel_guest.frames import CONTEXT_NAME

CONTEXT_PATTERN: Final = f"^{CONTEXT_NAME}$"
ContextName = Annotated[str, Path(pattern=CONTEXT_PATTERN)]
"""Type of a route's argument that is part of its path."""
