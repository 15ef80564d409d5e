"""Fuzz the vhost-user messages of the front end, in any order and cut anywhere.

Run: ``python tests/fuzz/fuzz_vhost_user.py -runs=100000``. Only errors of the package may come out, every descriptor
must be either in use or up for closing, few may be held open, and what is asked for next must stay small. Descriptors
come with any of a message's bytes, as many at once as a socket hands out, as from a front end that was taken over.
"""

import struct
import sys
from pathlib import Path

import atheris  # pyright: ignore[reportMissingImports, reportMissingTypeStubs]

sys.path.insert(0, str(Path(__file__).parents[2]))
with atheris.instrument_imports():  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
    from interpreter.errors import InterpreterError
    from interpreter.vsock.vhost_user import MAX_PAYLOAD, MAX_REGIONS, VhostUserBackend

# Those of one message, and a kick and a call of each of two rings.
MAX_HELD = MAX_REGIONS + 4


def test_one(data: bytes) -> None:
    backend = VhostUserBackend(3, lambda _: 0)
    given = 0
    position = 0
    try:
        while position + 3 < len(data):
            request, flags, size = data[position], data[position + 1], data[position + 2]
            payload = data[position + 3 : position + 3 + size]
            position += 3 + size
            # Well-formed frames nearly always, so that the handlers are reached.
            version = 1 if flags & 1 else 9
            stream = struct.pack("<III", request % 27, version, len(payload)) + payload
            if flags & 128:
                stream = payload
            with_first, with_each = flags >> 4 & 7, (flags >> 3 & 1) * (size & 15)
            coming = with_first + with_each
            while stream:
                assert 0 < backend.wanted <= MAX_PAYLOAD
                cut = min(backend.wanted, 1 + (flags & 6) * 20)
                descriptors, given = list(range(given, given + coming)), given + coming
                backend.receive(stream[:cut], descriptors)
                # What is up for closing is closed after each piece.
                assert given - len(backend.garbage) <= MAX_HELD
                stream, coming = stream[cut:], with_each
    except InterpreterError:
        pass
    backend.close()
    assert sorted(backend.garbage) == list(range(given))


if __name__ == "__main__":
    atheris.Setup(sys.argv, test_one)  # pyright: ignore[reportUnknownMemberType]
    atheris.Fuzz()  # pyright: ignore[reportUnknownMemberType]
