"""Large notebooks are parsed in a process of their own: a parser keeps all threads of its process waiting.

Bytes go in and bytes come out: the same JSON without the outputs of cells, which no run needs and which are what makes
notebooks large. The process is started for one notebook, ends with it, and may take so much memory.
"""

import asyncio
import contextlib
import json
import os
import resource
import signal
import sys
from typing import Any, Final, cast
from weakref import WeakKeyDictionary

from interpreter.deadline import deadline
from interpreter.errors import HostError, InvalidRequest, TooLarge
from interpreter.notebooks.format import as_json, parse_notebook

LARGE: Final = 2 * 1024 * 1024
"""Bytes from which on it is worth a process: less is parsed within 20 ms."""
_SECONDS: Final = 60.0
_MEMORY: Final = 3 * 1024**3
"""100 MB with one rare character in it take 400 as text, and as much again as what was parsed."""
_PIECE: Final = 256 * 1024
_NICE: Final = 5
_turns: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = WeakKeyDictionary()
"""One process at a time."""


async def without_outputs(data: bytes, what: str = "the body", *, memory: int = _MEMORY) -> bytes:
    """JSON of a notebook, or with one as its ``notebook``, without outputs; what is not large comes back as it is.

    The process may have ``memory`` bytes. Raises InvalidRequest and TooLarge, which say ``what`` it is; HostError.
    """
    if len(data) < LARGE:
        return data
    async with _turns.setdefault(asyncio.get_running_loop(), asyncio.Lock()):
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "interpreter.notebooks.apart", str(memory), what),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )
        assert process.stdin is not None  # noqa: S101  (they are pipes)
        assert process.stdout is not None  # noqa: S101
        try:
            async with deadline(_SECONDS):
                _, told = await asyncio.gather(_feed(process.stdin, data), process.stdout.read())
                await process.wait()
        except TimeoutError:
            raise TooLarge(f"{what} cannot be parsed within {_SECONDS:g} s") from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    if process.returncode == -signal.SIGKILL or told == b"memory":
        raise TooLarge(f"{what} takes too much memory to be parsed", hint="Clear the notebook's outputs")
    if process.returncode != 0 or not told:
        raise HostError(f"the process that parses notebooks ended with status {process.returncode}")
    if told[:1] == b"+":
        return told[1:]
    error = json.loads(told[1:])
    kind = TooLarge if error["code"] == TooLarge.code else InvalidRequest
    raise kind(error["message"], hint=error["hint"])


async def _feed(stdin: asyncio.StreamWriter, data: bytes) -> None:
    view = memoryview(data)
    # One that ends early says why.
    with contextlib.suppress(ConnectionError):
        for start in range(0, len(view), _PIECE):
            stdin.write(view[start : start + _PIECE])
            await stdin.drain()
    stdin.close()


def main() -> None:
    """The process: a notebook on standard input; on standard output it without outputs, or why that cannot be."""
    memory = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    os.nice(_NICE)
    try:
        told = _answer(sys.stdin.buffer.read(), sys.argv[2])
    except MemoryError:
        told = b"memory"
    sys.stdout.buffer.write(told)


def _answer(data: bytes, what: str) -> bytes:
    try:
        value = parse_notebook(data, what)
    except (InvalidRequest, TooLarge) as error:
        return b"-" + as_json(error.as_json())
    del data
    if isinstance(value, dict):
        given = cast("dict[str, Any]", value)
        _drop(given)
        _drop(given.get("notebook"))
    # As they came: what is no number in JSON is told, or mended, where notebooks are read.
    return b"+" + json.dumps(value, ensure_ascii=False).encode()


def _drop(notebook: object) -> None:
    if not isinstance(notebook, dict):
        return
    given = cast("dict[str, Any]", notebook)
    for part in (given, *_list(given.get("worksheets"))):
        if isinstance(part, dict):
            for cell in _list(cast("dict[str, Any]", part).get("cells")):
                if isinstance(cell, dict):
                    cast("dict[str, Any]", cell).pop("outputs", None)


def _list(value: object) -> list[Any]:
    return cast("list[Any]", value) if isinstance(value, list) else []


if __name__ == "__main__":
    main()
