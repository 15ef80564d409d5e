"""What two clones of one snapshot must not share, made anew on the host for each restore.

See Firecracker's "Entropy for clones" for the problem. The guest's agent applies these before anything else
may talk to it: kernel entropy, clock, host name, machine id, then the kernel's own random state and key.
"""

import os
import secrets
import time
import uuid
from dataclasses import dataclass, field
from typing import Any, Final

ENTROPY_BYTES: Final = 64
CLOCK_TOLERANCE_NS: Final = 40_000_000
"""How far off the guest's clock may seem after a restore, before it is set once more.

50 ms are promised; what is measured includes the answer's way back, so the true error is less.
"""


@dataclass(frozen=True, slots=True)
class Renewal:
    """One clone's identity. ``key`` signs Jupyter messages; ``session`` is the kernel's Jupyter session.

    ``orphaned_after``: seconds without a call after which the guest ends its machine; None when the machine ends with
    the host's process anyway.
    """

    hostname: str
    environment: dict[str, str] = field(default_factory=dict[str, str])
    machine_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    key: bytes = field(default_factory=lambda: secrets.token_hex(32).encode(), repr=False)
    session: str = field(default_factory=lambda: uuid.uuid4().hex)
    orphaned_after: float | None = None

    def arguments(self) -> dict[str, Any]:
        """The arguments of the agent's ``renew``; the entropy and the time are those of this moment."""
        return {
            "entropy": os.urandom(ENTROPY_BYTES),
            "clock_ns": time.time_ns(),
            "hostname": self.hostname,
            "machine_id": self.machine_id,
            "key": self.key,
            "session": self.session,
            "env": self.environment,
            "orphaned_after": self.orphaned_after,
        }
