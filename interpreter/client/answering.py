"""Answering code that asks for input, while its events go on."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

from interpreter.client.models import Event


async def answering(events: AsyncGenerator[Event], answer: Callable[[Event], Awaitable[None]]) -> AsyncGenerator[Event]:
    """Pass events on, up to their end, and have ``answer`` see to each ``input_request`` that comes by.

    Beside the reading of events: an interrupt or a timeout ends code that waits for an answer, and that is an event.
    What ``answer`` raises is raised here.
    """
    upcoming: asyncio.Future[Event | None] | None = None
    asking: set[asyncio.Future[None]] = set()
    try:
        while True:
            upcoming = asyncio.ensure_future(anext(events, None))
            while not upcoming.done():
                await asyncio.wait({upcoming, *asking}, return_when=asyncio.FIRST_COMPLETED)
                for answered in [task for task in asking if task.done()]:
                    asking.discard(answered)
                    answered.result()
            event = upcoming.result()
            if event is None:
                return
            if event["type"] == "input_request":
                asking.add(asyncio.ensure_future(answer(event)))
            yield event
    finally:
        left: list[asyncio.Future[Any]] = [*asking, *([upcoming] if upcoming else [])]
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        await events.aclose()
