"""Kernelspecs: every built template is one."""

import asyncio
from importlib.resources import files
from typing import Any, Final

from fastapi import APIRouter, Response

from interpreter.api.jupyter.models import KernelSpecModel, KernelSpecs
from interpreter.api.problems import problems
from interpreter.api.service import Service, ServiceOf
from interpreter.errors import NotFound
from interpreter.templates.store import TemplateStore

router = APIRouter(tags=["jupyter"])

_LOGOS: Final = {"logo-32x32.png": "image/png", "logo-64x64.png": "image/png", "logo-svg.svg": "image/svg+xml"}
ANY_PYTHON: Final = frozenset({"python3", "python"})
"""What clients and notebooks from elsewhere call their kernel, whichever it is: here the default template."""
_RESOURCES: Final = files("interpreter") / "jupyter" / "resources"


@router.get("/api/kernelspecs", summary="List kernelspecs", responses=problems(404))
async def kernelspecs(service: ServiceOf, user: str = "") -> KernelSpecs | KernelSpecModel:
    """Every built template, as a kernelspec."""
    # With a user's name Jupyter Server's gateway client asks for one kernelspec so: ?user=USER/NAME.
    if "/" in user:
        return await kernelspec(service, user.rpartition("/")[2])
    specs = await _specs(service)
    default = service.settings.default_template
    return KernelSpecs(default=default if default in specs else next(iter(specs), default), kernelspecs=specs)


@router.get("/api/kernelspecs/{name}", summary="Look at a kernelspec", responses=problems(404))
async def kernelspec(service: ServiceOf, name: str) -> KernelSpecModel:
    """One template as a kernelspec."""
    specs = await _specs(service)
    spec = specs.get(service.settings.default_template if name in ANY_PYTHON - specs.keys() else name)
    if spec is None:
        raise NotFound(f"there is no kernelspec {name[:100]!r}", hint="Build its template")
    return spec


@router.get(
    "/kernelspecs/{name}/{file}",
    summary="A kernelspec's logo",
    response_class=Response,
    responses={**problems(404), 200: {"content": {kind: {} for kind in sorted({*_LOGOS.values()})}}},
)
async def resource(name: str, file: str) -> Response:
    """A file that the kernelspec names among its `resources`. All templates have the same."""
    if file not in _LOGOS or not (_RESOURCES / file).is_file():
        raise NotFound(f"the kernelspec {name[:100]!r} has no such file")
    return Response((_RESOURCES / file).read_bytes(), media_type=_LOGOS[file])


async def _specs(service: Service) -> dict[str, KernelSpecModel]:
    built = await asyncio.to_thread(TemplateStore(service.settings.templates_home).list)
    return {name: _spec(name, template.manifest.definition.description) for name, template in sorted(built.items())}


def _spec(name: str, description: str) -> KernelSpecModel:
    logos = {file.rpartition(".")[0]: f"/kernelspecs/{name}/{file}" for file in _LOGOS if (_RESOURCES / file).is_file()}
    spec: dict[str, Any] = {
        # Nobody starts it from this: kernels start in the service.
        "argv": [],
        "display_name": f"Python 3 ({name})",
        "language": "python",
        "interrupt_mode": "message",
        "env": {},
        "metadata": {"debugger": True, "description": description},
    }
    return KernelSpecModel(name=name, spec=spec, resources=logos)
