"""Templates that an upgrade has left outdated, built anew beside what the service does."""

import asyncio
import contextlib

import structlog

from interpreter.engine.engine import Engine
from interpreter.errors import InterpreterError
from interpreter.templates.build import build_template
from interpreter.templates.overview import known_templates

log = structlog.get_logger(__name__)


async def rebuild_outdated(engine: Engine) -> None:
    """Build each outdated template anew, one after the other. One that fails stays as it is, and is told in the log."""
    for known in await asyncio.to_thread(known_templates, engine.settings):
        if not (known.outdated and known.defined):
            continue
        # A build locks the name. What is loaded before serves until it is over, when it can serve at all.
        with contextlib.suppress(InterpreterError):
            await engine.load(known.name)
        log.info("outdated template is built anew", template=known.name)
        try:
            await build_template(engine.settings, known.name, engine.accelerator.accelerator, _tell)
        except InterpreterError as error:
            log.warning("outdated template could not be built anew", template=known.name, error=str(error))
        else:
            log.info("template renewed", template=known.name)


def _tell(step: str) -> None:
    log.info("template", progress=step)
