"""Which addresses are this machine's own."""

import pytest

from interpreter.loopback import is_loopback


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.8.9.10", "::1", "::ffff:127.0.0.1", "::ffff:7f00:1"])
def test_these_are(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host",
    [
        "",
        "0.0.0.0",
        "::",
        "10.0.0.1",
        "::ffff:10.0.0.1",
        "128.0.0.1",
        "fe80::1%lo",
        "localhost.example",
        "127.1",
        "a" * 99,
    ],
)
def test_these_are_not(host: str) -> None:
    assert not is_loopback(host)
