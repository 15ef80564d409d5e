"""The reference of all routes as a page for people, with nothing on it that comes from another machine."""

from fastapi import APIRouter
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.responses import HTMLResponse
from fastapi.staticfiles import StaticFiles

PAGE = "/docs"
ASSETS = f"{PAGE}/assets"

router = APIRouter(include_in_schema=False)
assets = StaticFiles(packages=[("fastapi_offline", "static")])
"""Swagger UI's script and style, as a package has them."""

# The page is one with the service's own origin, from which everything may be called.
_POLICY = "default-src 'self' 'unsafe-inline'; img-src 'self' data:"


@router.get(PAGE)
async def reference() -> HTMLResponse:
    """The page."""
    page = get_swagger_ui_html(
        openapi_url="/openapi.json",
        title="interpreter",
        swagger_js_url=f"{ASSETS}/swagger-ui-bundle.js",
        swagger_css_url=f"{ASSETS}/swagger-ui.css",
        swagger_favicon_url=f"{ASSETS}/favicon.png",
    )
    page.headers["Content-Security-Policy"] = _POLICY
    return page
