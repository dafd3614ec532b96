"""What an index template gives an index that is to be made, so that nothing of it is overruled unsaid.

The cluster puts the fields of a request in the place of a template's, whole, and merges everything else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from opensearchpy.exceptions import AuthorizationException, NotFoundError

from oskit.cluster.client.failures import cluster_errors
from oskit.cluster.index.given import check_mapping, expanded, flat_settings, joined, overlaid
from oskit.cluster.index.mapping import IndexSettings, own_fields
from oskit.errors import IndexingError

if TYPE_CHECKING:
    from opensearchpy import OpenSearch

_SIZES = ("number_of_shards", "number_of_replicas", "auto_expand_replicas")


@dataclass(frozen=True)
class Template:
    """What the templates that match an index's name give it, together.

    Attributes:
        name: Of the one that decides, or of several of the old kind.
        settings: Flat, without ``index.``.
        mapping: A whole mapping.
        aliases: Names.
    """

    name: str
    settings: Mapping[str, Any]
    mapping: Mapping[str, Any]
    aliases: tuple[str, ...]

    def __str__(self) -> str:
        """For messages: what it brings."""
        fields = ", ".join(self.mapping.get("properties") or {})
        other = ", ".join(name for name in self.mapping if name != "properties")
        told = [
            f"settings {', '.join(f'{key}={value}' for key, value in self.settings.items())}"
            if self.settings
            else "",
            f"fields {fields}" if fields else "",
            f"of the mapping {other}" if other else "",
            f"aliases {', '.join(self.aliases)}" if self.aliases else "",
        ]
        return f"The index template {self.name!r} brings {'; '.join(filter(None, told)) or 'nothing'}"


def template_of(client: OpenSearch, index: str) -> Template | None:
    """What an index of this name will get; None if nothing, or if we may not ask.

    Raises:
        IndexingError: The name is for data streams, or the cluster refuses.
    """
    with cluster_errors("see the index templates", IndexingError):
        try:
            found: list[dict[str, Any]] = client.indices.get_index_template().get("index_templates", [])
            older: dict[str, dict[str, Any]] = client.indices.get_template()
        except (AuthorizationException, NotFoundError):  # or the service has none
            return None
        matching = [each for each in found if _matches(each["index_template"], index)]
        if matching:
            chosen = max(matching, key=lambda each: each["index_template"].get("priority") or 0)
            answer = client.indices.simulate_index_template(name=index)
            parts = [answer.get("template") or {}]
            if "data_stream" in chosen["index_template"]:
                raise IndexingError(
                    f"the name {index!r} is for data streams, by the index template {chosen['name']!r}",
                    hint=f"Make the stream (PUT _data_stream/{index}), or choose another name",
                )
            return _template(chosen["name"], parts)
    old = {name: body for name, body in older.items() if _matches(body, index)}
    ordered = sorted(old.values(), key=lambda body: body.get("order", 0))
    return _template(", ".join(old), ordered) if old else None


def _matches(body: object, index: str) -> bool:
    return isinstance(body, Mapping) and any(
        fnmatchcase(index, pattern) for pattern in body.get("index_patterns") or ()
    )


def _template(name: str, parts: list[dict[str, Any]]) -> Template:
    settings: dict[str, Any] = {}
    mapping: dict[str, Any] = {}
    aliases: dict[str, Any] = {}
    for part in parts:
        settings |= flat_settings(part.get("settings") or {})
        mapping = overlaid(mapping, part.get("mappings") or {})
        aliases |= part.get("aliases") or {}
    return Template(name, settings, mapping, tuple(aliases))


def under(settings: IndexSettings, template: Template) -> IndexSettings:
    """Settings for an index that a template shapes as well: what the template says of our fields stays.

    Raises:
        UsageError: The template contradicts what the index needs.
    """
    who = f"the index template {template.name!r}"
    check_mapping(template.mapping, who)
    wrong = [name for name in template.settings if name.startswith("blocks.")]
    joined(dict.fromkeys(wrong), {name: template.settings[name] for name in wrong}, who)
    if settings.kind == "sparse_vector":
        sparse = {name: value for name, value in template.settings.items() if name == "sparse"}
        joined({"sparse": True}, sparse, who)
    fields = expanded(template.mapping.get("properties") or {})
    ours = expanded(own_fields(settings))
    theirs = {name: fields[name] for name in ours if name in fields}
    joined(ours, theirs, who, "properties")
    analyzed = {settings.passage_field: {"analyzer": settings.analyzer}} if settings.analyzer else {}
    given = overlaid(theirs, overlaid(expanded(analyzed), expanded(settings.mappings)))
    sizes = {name: template.settings[name] for name in _SIZES if name in template.settings}
    if settings.shards is not None:
        sizes.pop("number_of_shards", None)
    own = flat_settings(settings.settings)
    if settings.replicas is not None or any(name in own for name in _SIZES[1:]):
        sizes = {name: value for name, value in sizes.items() if name not in _SIZES[1:]}
    dates = {name: value for name, value in template.mapping.items() if name == "date_detection"}
    return replace(
        settings,
        mappings=given,
        mapping={**dates, **settings.mapping},
        settings={**sizes, **own},
    )
