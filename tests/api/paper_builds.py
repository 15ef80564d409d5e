"""Builds of templates that have a manifest and nothing else: enough for all that is decided before a machine starts."""

import json
from pathlib import Path

from interpreter import Settings
from interpreter.templates.definition import read_template
from interpreter.templates.manifest import MANIFEST, Manifest, content_hash, write_json
from interpreter.templates.store import TemplateStore
from kernel_guest.frames import AGENT_VERSION


def publish(settings: Settings, name: str) -> None:
    """As if the template were built as it is defined now."""
    template = read_template(settings, name)
    store = TemplateStore(settings.templates_home)
    manifest = Manifest(
        name=name,
        agent_version=AGENT_VERSION,
        content_hash=content_hash(template),
        definition=template.definition,
        kernel_version="6",
        apt_packages={},
        python_packages={},
        build_seconds={},
        files={},
    )
    with store.build_folder() as folder:
        write_json(manifest, folder / MANIFEST)
        store.publish(folder, manifest)


def manifest_of(settings: Settings) -> Path:
    """The manifest of the only build."""
    (path,) = settings.templates_home.glob(f"built/*/{MANIFEST}")
    return path


def rewrite(settings: Settings, **fields: object) -> None:
    """Change what the only build's manifest says."""
    path = manifest_of(settings)
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
