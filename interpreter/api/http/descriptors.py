"""The file descriptors of the process: how many it may have, and how they are shared out."""

import resource
from typing import Final

from interpreter.errors import ConfigurationError
from interpreter.settings import Settings

MAX_CONNECTIONS: Final = 4096
"""Connections at once; more than any number of sessions needs, and each takes memory, too."""
RESERVE: Final = 64
"""Descriptors that no connection gets: the memory's guard and the sessions that run need one now and then."""
_OWN: Final = 64
"""The database, loaded templates, listeners, logs."""
IDLE_SESSION: Final = 8
"""What a session takes while nothing happens in it, and a machine of the pool as well."""
_SESSION: Final = 2 * IDLE_SESSION
"""Each context, command, transfer and client of its kernels takes one more."""
_LEAST: Final = 64
_HIGHEST: Final = 65_536
"""Some programs that a build runs go through all numbers that there may be."""


def raise_limit() -> int:
    """Let the process have as many descriptors as the system allows it; returns their number."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _HIGHEST if hard == resource.RLIM_INFINITY else min(hard, _HIGHEST)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        return wanted
    return _HIGHEST if soft == resource.RLIM_INFINITY else soft


def room_for_connections(settings: Settings, limit: int) -> int:
    """How many connections there may be beside all sessions. Raises ConfigurationError when the sessions do not fit."""
    room = limit - RESERVE - _OWN - IDLE_SESSION * sum(settings.pool.values())
    left = room - _SESSION * settings.max_sessions
    if left < _LEAST:
        fitting = max((room - _LEAST) // _SESSION, 0)
        raise ConfigurationError(
            f"{settings.max_sessions} sessions do not fit into the {limit} file descriptors that this process may have",
            hint=f"Raise the limit (ulimit -n, LimitNOFILE), or set INTERPRETER_MAX_SESSIONS to {fitting} or less",
        )
    return min(left, MAX_CONNECTIONS)
