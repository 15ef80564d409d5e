"""A kernel that takes all memory ends at once and alone: its session, its files and what else runs there stay."""

import pytest

from interpreter import KernelDied, Session

SLOWLY = 'rows = []\nwhile True:\n    rows.append({"id": len(rows), "name": "user%d" % len(rows)})'
IN_PIECES = "pieces = []\nwhile True:\n    pieces.append(b'x' * 1_000_000)"
MANY = "import os\nwhile True:\n    if os.fork() == 0:\n        kept = bytearray(b'x') * 50_000_000\n        os.wait()"


@pytest.mark.parametrize("code", [SLOWLY, IN_PIECES, MANY], ids=["slowly", "in pieces", "in many processes"])
async def test_the_kernel_dies_and_says_why_and_the_session_goes_on(session: Session, code: str) -> None:
    await session.execute("open('kept', 'w').write('still here')")
    with pytest.raises(KernelDied, match="out of memory"):
        await session.execute(code, timeout=240)
    await session.ping(timeout=10)
    await session.restart()
    result = await session.execute("print(open('kept').read())")
    assert result.stdout == "still here\n"


async def test_more_than_there_ever_is_is_refused(session: Session) -> None:
    result = await session.execute("whole = bytearray(1 << 40)")
    assert result.error is not None
    assert result.error.ename == "MemoryError"


async def test_another_kernel_of_the_session_keeps_its_variables(session: Session) -> None:
    other = await session.open_context("other")
    await other.execute("kept = 1")
    with pytest.raises(KernelDied, match="out of memory"):
        await session.execute(IN_PIECES, timeout=240)
    assert (await other.execute("print(kept)")).stdout == "1\n"
