"""A folder or file of a session as an archive, which the guest builds while it is read."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Literal

from interpreter.errors import GuestRefused, MachineDied, TransferError
from interpreter.kernel.files import PIECE
from interpreter.kernel.framing import Connect, open_service
from interpreter.kernel.paths import check_path, refusal, sent_path
from kernel_guest.frames import AGENT_VERSION

ArchiveFormat = Literal["tar.gz", "tar", "zip"]


@asynccontextmanager
async def open_archive(
    connect: Connect,
    path: str,
    format: ArchiveFormat = "tar.gz",  # noqa: A002  (what everyone calls it)
    *,
    version: int = AGENT_VERSION,
) -> AsyncGenerator[AsyncIterable[bytes]]:
    """The pieces of an archive of ``path``, at most PIECE bytes each; its entries begin with the name of ``path``.

    Links are kept as links in a tar and left out of a zip. Raises TransferError with what the guest said, or while
    the pieces are read when it broke off; MachineDied.
    """
    sent = sent_path(check_path(path), version)
    async with AsyncExitStack() as closing:
        try:
            stream = await closing.enter_async_context(open_service(connect, "archive", path=sent, format=format))
        except GuestRefused as error:
            raise refusal(f"{path} could not be archived", error) from error
        except ConnectionError as error:
            raise MachineDied(f"the machine ended while {path} was archived") from error
        yield _pieces(stream.reader, path)


async def _pieces(reader: asyncio.StreamReader, path: str) -> AsyncGenerator[bytes]:
    try:
        # Each piece with its length, the last of length 0: an end is told from a break.
        while left := int.from_bytes(await reader.readexactly(4), "big"):
            while left:
                piece = await reader.read(min(left, PIECE))
                if not piece:
                    raise asyncio.IncompleteReadError(piece, left)
                left -= len(piece)
                yield piece
    except asyncio.IncompleteReadError:
        raise TransferError(f"the archive of {path} broke off before its end") from None
    except ConnectionError as error:
        raise MachineDied(f"the machine ended while {path} was archived") from error
