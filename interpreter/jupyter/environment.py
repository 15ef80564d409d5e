"""Which of a client's environment variables its kernel gets: next to none, for they are the host's."""

from collections.abc import Collection, Mapping
from typing import Final

_PREFIX: Final = "KERNEL_"
_NOT_FOR_KERNELS: Final = frozenset({"KERNEL_LAUNCH_TIMEOUT"})


def guest_environment(environment: Mapping[str, str], names: Collection[str] = ()) -> dict[str, str]:
    """What begins with ``KERNEL_``, which is what Jupyter's clients say to kernels, and what ``names`` names."""
    return {
        name: value
        for name, value in environment.items()
        if name in names or (name.startswith(_PREFIX) and name not in _NOT_FOR_KERNELS)
    }
