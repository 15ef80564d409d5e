"""JSON bodies that may be long: their routes read them, so that nothing of FastAPI's keeps them while code runs."""

from fastapi import Request

from interpreter.errors import InvalidRequest


async def long_body(request: Request) -> bytes:
    """The body, whole. Raises InvalidRequest when it says that it is no JSON."""
    if not request.headers.get("content-type", "").lower().startswith("application/json"):
        raise InvalidRequest("the body is not JSON", hint="Send it with Content-Type: application/json")
    return b"".join([piece async for piece in request.stream()])
