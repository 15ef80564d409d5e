"""Kernelspecs: what Jupyter's front ends list as kernels. Each names a template, and a service's URL or none."""

import json
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

from jupyter_client.kernelspec import KernelSpecManager

from interpreter.errors import ConfigurationError, HostError, NotFound

PROVISIONER: Final = "interpreter"
"""The provisioner's name among jupyter_client's entry points."""
_RESOURCES: Final = Path(__file__).with_name("resources")


@dataclass(frozen=True, slots=True)
class Kernelspec:
    """A kernelspec of ours. Without ``url`` its kernels' machines run in the front end's own process."""

    name: str
    template: str
    display_name: str
    url: str = ""
    folder: Path | None = None
    """Where it is installed."""

    @classmethod
    def of_template(cls, template: str, *, url: str = "", name: str = "", display_name: str = "") -> "Kernelspec":
        """A template's kernelspec, with the usual names for those that are not given."""
        return cls(name or f"interpreter-{template}", template, display_name or f"Python 3 ({template}, microVM)", url)

    def document(self) -> dict[str, Any]:
        """What ``kernel.json`` holds. Front ends that know no provisioners start ``argv``."""
        service = {"url": self.url} if self.url else {}
        # Never with the notebook's own folder on the path (-P): what lies there would run here, outside of any machine.
        launcher = [sys.executable, "-P", "-m", "interpreter.jupyter", "-f", "{connection_file}"]
        launcher += ["--template", self.template]
        config = {"template": self.template, **service}
        return {
            "argv": [*launcher, *(["--url", self.url] if self.url else [])],
            "display_name": self.display_name,
            "language": "python",
            "interrupt_mode": "signal",
            "env": {},
            "metadata": {
                "debugger": True,
                "kernel_provisioner": {"provisioner_name": PROVISIONER, "config": config},
            },
        }

    def as_json(self) -> dict[str, str | None]:
        """As the command line tells it to programs."""
        return {
            "name": self.name,
            "template": self.template,
            "display_name": self.display_name,
            "url": self.url or None,
            "folder": None if self.folder is None else str(self.folder),
        }


def install(kernelspec: Kernelspec, prefix: Path | None) -> Kernelspec:
    """Write a kernelspec for this user, or below ``prefix``; one of the same name is replaced.

    Raises ConfigurationError, HostError.
    """
    manager = KernelSpecManager()
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        (folder / "kernel.json").write_text(json.dumps(kernelspec.document(), indent=1) + "\n", encoding="utf-8")
        for resource in sorted(_RESOURCES.iterdir()) if _RESOURCES.is_dir() else ():
            if resource.is_file():
                shutil.copy(resource, folder)
        try:
            where = manager.install_kernel_spec(
                made, kernelspec.name, user=prefix is None, prefix=None if prefix is None else str(prefix)
            )
        except ValueError as error:
            raise ConfigurationError(f"{kernelspec.name!r} cannot be the name of a kernelspec: {error}") from None
        except OSError as error:
            raise HostError(
                f"the kernelspec cannot be written to {error.filename}: {error.strerror}", hint="Use --user or --prefix"
            ) from None
    installed = Path(where)
    # Copied with the mode of a private temporary folder, which others may have to read.
    installed.chmod(0o755)
    return Kernelspec(installed.name, kernelspec.template, kernelspec.display_name, kernelspec.url, installed)


def installed() -> list[Kernelspec]:
    """All kernelspecs of ours that Jupyter finds, by name."""
    found = _manager().find_kernel_specs()
    read = (_read(name, Path(folder)) for name, folder in sorted(found.items()))
    return [kernelspec for kernelspec in read if kernelspec is not None]


def remove(name: str) -> Kernelspec:
    """Remove a kernelspec of ours. Raises NotFound, HostError."""
    for kernelspec in installed():
        if kernelspec.name == name.lower() and kernelspec.folder is not None:
            try:
                shutil.rmtree(kernelspec.folder)
            except OSError as error:
                raise HostError(f"{kernelspec.folder} cannot be removed: {error.strerror}") from None
            return kernelspec
    raise NotFound(
        f"there is no kernelspec {name!r} that was installed by `interpreter kernelspec install`",
        hint="`interpreter kernelspec list` shows those that there are",
    )


def _manager() -> KernelSpecManager:
    manager = KernelSpecManager()
    manager.ensure_native_kernel = False
    return manager


def _read(name: str, folder: Path) -> Kernelspec | None:
    try:
        document: Any = json.loads((folder / "kernel.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    match document:
        case {
            "display_name": str(display_name),
            "metadata": {
                "kernel_provisioner": {"provisioner_name": "interpreter", "config": {"template": str(template), **more}}
            },
        }:
            url = cast("dict[str, object]", more).get("url")
            return Kernelspec(name, template, display_name, url if isinstance(url, str) else "", folder)
        case _:
            return None
