"""The versions of the guest's agent that the service speaks with, and what the older ones of them cannot do.

A template keeps its agent until it is built again, and a session's machine as long as it lives: after an upgrade both
are of the version before. Whoever changes what the agent understands gives it the next version and puts here what the
one before lacks; the version before that goes from the table.
"""

from collections.abc import Mapping
from typing import Final

from interpreter.errors import GuestRefused, TemplateOutdated

EXCLUSIVE_PUT: Final = "put without overwrite"
PARTS: Final = "parts of files"
RAW_NAMES: Final = "names that are not UTF-8"

_FILES = frozenset({EXCLUSIVE_PUT, PARTS, RAW_NAMES})
SPOKEN: Final[Mapping[int, frozenset[str]]] = {2: _FILES | {"progress"}, 3: _FILES, 4: frozenset()}
"""By version, the operations, and what else of the above, that an agent of it does not know."""


def check_spoken(version: int, template: str = "NAME") -> None:
    """Raises TemplateOutdated when this service does not speak with agents of that version."""
    if version not in SPOKEN:
        spoken = " and ".join(map(str, sorted(SPOKEN)))
        raise TemplateOutdated(
            f"the template was built by another version of the service (agent {version}, this one speaks {spoken})",
            hint=f"Build it anew: interpreter template build {template}",
        )


def knows(what: str, version: int) -> bool:
    """Whether agents of that version know the operation, or what else it is."""
    return what not in SPOKEN[version]


def check_known(operation: str, version: int) -> None:
    """Raises GuestRefused when agents of that version do not know the operation."""
    if not knows(operation, version):
        raise GuestRefused(
            f"the session is from before the service was upgraded, and its machine does not know `{operation}`",
            guest_code="too_old",
            hint="Start another session",
        )
