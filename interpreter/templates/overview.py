"""All templates that are defined or built, and which of the built ones are outdated."""

from dataclasses import dataclass

from interpreter.errors import TemplateError, TemplateOutdated
from interpreter.kernel.versions import SPOKEN
from interpreter.settings import Settings
from interpreter.templates.definition import defined_names, read_template
from interpreter.templates.manifest import content_hash
from interpreter.templates.store import BuiltTemplate, TemplateStore


@dataclass(frozen=True, slots=True)
class KnownTemplate:
    """A template by its name. ``built`` is None when it is not, or cannot be read.

    ``outdated``: what would be built now is another, since its definition or the service has changed.
    """

    name: str
    defined: bool
    built: BuiltTemplate | None
    outdated: bool


def known_templates(settings: Settings) -> list[KnownTemplate]:
    """All templates, by name. Blocks."""
    store = TemplateStore(settings.templates_home)
    defined = defined_names(settings)
    known: list[KnownTemplate] = []
    for name in sorted(defined | set(store.names())):
        try:
            built = store.find(name)
        except TemplateError as error:
            known.append(KnownTemplate(name, name in defined, None, isinstance(error, TemplateOutdated)))
        else:
            known.append(KnownTemplate(name, name in defined, built, _is_outdated(settings, name, built)))
    return known


def _is_outdated(settings: Settings, name: str, built: BuiltTemplate) -> bool:
    if built.manifest.agent_version not in SPOKEN:
        return True
    try:
        return content_hash(read_template(settings, name)) != built.manifest.content_hash
    except TemplateError:
        # Without a definition that can be read there is nothing to build.
        return False
