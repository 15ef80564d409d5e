"""Errors as HTTP answers: one body for all of them, and one table from codes to statuses."""

from http import HTTPStatus
from typing import Any, Final

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocketDisconnect

from interpreter.errors import Busy, InterpreterError, TransferError

log = structlog.get_logger(__name__)


class ErrorBody(BaseModel):
    """What went wrong and what to do about it."""

    code: str = Field(description="Stable name of the error.", examples=["not_found"])
    message: str = Field(description="What happened.", examples=["there is no session '1f3a'"])
    hint: str | None = Field(default=None, description="What to do.", examples=["List your sessions"])


class Problem(BaseModel):
    """The body of every answer that is an error."""

    error: ErrorBody


class Refusal(JSONResponse):
    """An error as a response. On Jupyter's own routes it also has ``message`` and ``reason``, as their clients want."""

    def __init__(self, problem: Problem, status: int, headers: dict[str, str] | None = None) -> None:
        super().__init__(problem.model_dump(), status, headers)
        self._problem = problem
        self._given_headers = headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if not is_jupyters(scope["path"]):
            await super().__call__(scope, receive, send)
            return
        error = self._problem.error
        words = f"{error.message}. {error.hint}" if error.hint else error.message
        body = {**self._problem.model_dump(), "message": words, "reason": error.code}
        await JSONResponse(body, self.status_code, self._given_headers)(scope, receive, send)


_JUPYTER_PATHS: Final = ("/api/", "/kernelspecs/")

STATUSES: Final[dict[str, int]] = {
    "unauthorised": 401,
    "forbidden": 403,
    "not_found": 404,
    "template_not_found": 404,
    "file_not_found": 404,
    "method_not_allowed": 405,
    "conflict": 409,
    "file_exists": 409,
    "folder_not_empty": 409,
    "kernel_died": 409,
    "guest_refused": 409,
    "command_not_started": 422,
    "too_large": 413,
    "invalid_request": 422,
    "bad_path": 422,
    "is_a_folder": 422,
    "not_a_folder": 422,
    "transfer": 422,
    "template_invalid": 422,
    "file_permission": 403,
    "tenant_limit": 429,
    "busy": 429,
    "template_outdated": 503,
    "host_full": 503,
    "draining": 503,
    "not_ready": 503,
    "machine_start_failed": 503,
    "guest_unresponsive": 504,
    "execution_timeout": 504,
    "disk_full": 507,
    "no_space": 507,
}
"""What is not here is 500: it is the service's fault, not the caller's."""

_CODES: Final = {413: "too_large", 405: "method_not_allowed", 404: "not_found"}


def is_jupyters(path: str) -> bool:
    """Whether Jupyter's own protocol is spoken there."""
    return path == "/api" or path.startswith(_JUPYTER_PATHS)


def install(app: FastAPI) -> None:
    """Answer every error with a `Problem`."""

    async def ours(_: Request, error: Exception) -> Refusal:
        assert isinstance(error, InterpreterError)  # noqa: S101  (it is registered for these)
        _let_go(error)
        return refusal_of(error)

    async def invalid(_: Request, error: Exception) -> Refusal:
        assert isinstance(error, RequestValidationError)  # noqa: S101
        _let_go(error)
        faults = [_fault(fault) for fault in error.errors()]
        return answer(422, "invalid_request", "; ".join(faults)[:2000], "See /docs for what this route takes")

    async def http(_: Request, error: Exception) -> Refusal:
        assert isinstance(error, HTTPException)  # noqa: S101
        _let_go(error)
        return refusal_of_http(error)

    async def gone(_: Request, __: Exception) -> Refusal:
        return answer(400, "bad_request", "the request's body ended before it was whole", "Send it again")

    async def unexpected(_: Request, error: Exception) -> Refusal:
        log.error("unexpected error", exc_info=error)
        return answer(500, "internal", "an error in the service; its log tells more", None)

    app.add_middleware(_WebSocketFaults)
    app.add_exception_handler(InterpreterError, ours)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(ClientDisconnect, gone)
    app.add_exception_handler(Exception, unexpected)


class _WebSocketFaults:
    """Logs what a WebSocket's route raises; the handlers above are for HTTP alone."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._app(scope, receive, send)
        except WebSocketDisconnect:
            raise
        except Exception:
            if scope["type"] == "websocket":
                log.exception("unexpected error")
            raise


def refusal_of(error: InterpreterError) -> Refusal:
    """One of our own errors as a response."""
    status = STATUSES.get(error.code, 500)
    if status >= 500:
        # Not a message that names a user's file.
        told = error.code if isinstance(error, TransferError) else str(error)
        log.warning("request failed", code=error.code, error=told)
    headers = {"Retry-After": str(error.retry_after)} if isinstance(error, Busy) else {}
    return answer(status, error.code, error.message, error.hint, headers)


def refusal_of_http(error: HTTPException) -> Refusal:
    """An error of the framework's as a response."""
    code = _CODES.get(error.status_code) or HTTPStatus(error.status_code).phrase.lower().replace(" ", "_")
    hint = "Send it in parts" if error.status_code == 413 else None
    return answer(error.status_code, code, str(error.detail), hint, dict(error.headers or {}))


def answer(status: int, code: str, message: str, hint: str | None, headers: dict[str, str] | None = None) -> Refusal:
    """An error as a response."""
    problem = Problem(error=ErrorBody(code=code, message=message, hint=hint))
    return Refusal(problem, status, headers)


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The ``responses`` of a route that may answer with these errors, besides those that every route has."""
    every = {*statuses, 400, 401, 403, 422, 500, 503}
    return {status: {"model": Problem, "description": HTTPStatus(status).phrase} for status in sorted(every)}


def _let_go(error: Exception) -> None:
    # FastAPI raises from a variable, and that from what a parser said: error and frames hold each other, and the body.
    error.__traceback__ = error.__cause__ = error.__context__ = None


def _fault(fault: Any) -> str:
    where = ".".join(str(part) for part in fault["loc"] if part != "body")
    return f"{where or 'the body'}: {fault['msg']}"
