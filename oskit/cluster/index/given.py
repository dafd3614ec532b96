"""Settings and mappings that others give an index: a file, an index template. Ours are joined to them.

Where both say something, and not the same, that is refused: nothing of either is dropped.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oskit.cluster.client.failures import cluster_errors
from oskit.cluster.index.meta import META_KEY
from oskit.errors import DataError, IndexingError, UsageError

if TYPE_CHECKING:
    from opensearchpy import OpenSearch

    from oskit.cluster.index.mapping import IndexSettings

_ROOT = frozenset(
    {"properties", "dynamic", "dynamic_templates", "dynamic_date_formats", "date_detection", "_meta",
     "numeric_detection", "_source", "_routing", "_field_names", "_size", "derived"}
)  # fmt: skip
"""What stands in a mapping beside the fields."""

_OF_AN_INDEX = frozenset({"settings", "mappings", "aliases"})

_LANGUAGES = "arabic, cjk, english, french, german, norwegian, russian, spanish, swedish, …"


def read_settings(path: str | Path) -> dict[str, Any]:
    """Index settings of a JSON file, flat and without ``index.``; also of a body that creates an index.

    Raises:
        DataError, UsageError: It cannot be read, or holds something else.
    """
    settings = flat_settings(_read(path, "settings"))
    if wrong := sorted(name for name in settings if name.startswith(("blocks.", "properties."))):
        raise UsageError(f"{path}: index.{wrong[0]} is no setting of an index that is to be loaded")
    return settings


def flat_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of an index by names with dots, without ``index.``."""
    return {name.removeprefix("index."): value for name, value in _flat(settings)}


def read_mapping(path: str | Path) -> dict[str, Any]:
    """A mapping of a JSON file; also of a body that creates an index.

    Raises:
        DataError, UsageError: It cannot be read, holds something else, or what oskit does not allow.
    """
    found = _read(path, "mappings")
    if wrong := sorted(found.keys() - _ROOT):
        raise UsageError(
            f"{path}: {wrong[0]!r} is nothing that a mapping has",
            hint='Fields stand in "properties", as in {"properties": {"price": {"type": "float"}}}',
        )
    check_mapping(found, str(path))
    return found


def check_mapping(mapping: Mapping[str, Any], who: str) -> None:
    """Refuse what an index cannot have that oskit loads; ``who`` gives it, for messages.

    Raises:
        UsageError: Names it.
    """
    if META_KEY in (mapping.get("_meta") or {}):
        raise UsageError(f"{who}: _meta.{META_KEY} is what oskit writes there itself", hint="Leave it out")
    if (mapping.get("_source") or {}).get("enabled") in (False, "false"):
        raise UsageError(f"{who}: without _source nobody can see or update a document", hint="Leave it on")
    if (mapping.get("_routing") or {}).get("required") in (True, "true"):
        raise UsageError(f"{who}: oskit sends no _routing, so none can be required", hint="Leave it out")


def _read(path: str | Path, what: str) -> dict[str, Any]:
    try:
        found = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON: {error}") from error
    if isinstance(found, dict) and what in found and found.keys() <= _OF_AN_INDEX:
        if more := sorted(found.keys() - {what}):
            raise UsageError(
                f"{path} holds {' and '.join(more)} too, which would have no effect",
                hint=f"Leave only {what} in it, and give mappings a file of their own",
            )
        found = found[what]
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise DataError(f"{path} does not hold {what}: it is no JSON object")
    return found


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def expanded(properties: Mapping[str, Any]) -> dict[str, Any]:
    """Fields with dots in their names as objects, which is what OpenSearch makes of them."""
    made: dict[str, Any] = {}
    for name, definition in properties.items():
        inner = dict(definition) if isinstance(definition, Mapping) else definition
        if isinstance(inner, dict) and isinstance(inner.get("properties"), Mapping):
            inner["properties"] = expanded(inner["properties"])
        for part in reversed(name.split(".")[1:]):
            inner = {"properties": {part: inner}}
        made = joined(made, {name.split(".")[0]: inner}, "the mapping")
    return made


def joined(ours: Mapping[str, Any], theirs: Mapping[str, Any], who: str, path: str = "") -> dict[str, Any]:
    """Both, however deep.

    Args:
        who: Gives ``theirs``, for messages.

    Raises:
        UsageError: They say different things of one and the same.
    """
    both = dict(ours)
    for name, value in theirs.items():
        where = f"{path}.{name}" if path else name
        before = both.get(name)
        if name not in both:
            both[name] = value
        elif isinstance(before, Mapping) and isinstance(value, Mapping):
            both[name] = joined(before, value, who, where)
        elif not same(before, value):
            raise UsageError(
                f"{who} says {where}: {json.dumps(value)}, and oskit needs {json.dumps(before)}",
                hint="Leave it out there, or choose other options",
            )
    return both


def overlaid(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Both, however deep; where they differ, ``above`` counts."""
    both = dict(below)
    for name, value in above.items():
        before = both.get(name)
        inside = isinstance(before, Mapping) and isinstance(value, Mapping)
        both[name] = overlaid(before, value) if inside else value  # type: ignore[arg-type]
    return both


def same(one: Any, other: Any) -> bool:
    """Whether the cluster, which makes texts of numbers and booleans, means the same by both."""
    return one == other or _plain(one) == _plain(other)


def _plain(value: Any) -> str:
    return (value if isinstance(value, str) else json.dumps(value, sort_keys=True)).lower()


def difference(
    given: Mapping[str, Any], there: Mapping[str, Any], *, absent: bool
) -> tuple[str, Any, Any] | None:
    """The first of what was given that is not there, as its path, what is there and what was given.

    Args:
        absent: What is not there at all counts too. The cluster leaves out what is its default.
    """
    has = dict(_flat(there))
    for path, value in _flat(given):
        if path in has:
            if not same(has[path], value):
                return path, has[path], value
        elif absent:
            return path, None, value
    return None


def unmapped(mapping: Mapping[str, Any], source: Mapping[str, Any]) -> str | None:
    """The first field of a document that a strict mapping refuses it for; None if there is none."""
    return _unmapped(mapping, source, str(mapping.get("dynamic", "true")), "")


def _unmapped(objects: Mapping[str, Any], value: object, dynamic: str, path: str) -> str | None:
    if isinstance(value, list | tuple):
        inside = (_unmapped(objects, each, dynamic, path) for each in value)
        return next(filter(None, inside), None)
    if not isinstance(value, Mapping) or objects.get("enabled") in (False, "false"):
        return None
    dynamic = str(objects.get("dynamic", dynamic)).lower()
    for name, inner in value.items():
        first, _, rest = str(name).partition(".")
        where, known = f"{path}{first}", (objects.get("properties") or {}).get(first)
        if known is None:
            if dynamic == "strict":
                return where
        elif known.get("type", "object") in ("object", "nested") and (
            found := _unmapped(known, {rest: inner} if rest else inner, dynamic, f"{where}.")
        ):
            return found
    return None


def digest_of(settings: IndexSettings) -> str | None:
    """What tells one set of given settings and mappings from another; None where nothing was given."""
    given = [settings.settings, settings.mappings, settings.mapping]
    if not any(given):
        return None
    return hashlib.blake2b(json.dumps(given, sort_keys=True).encode(), digest_size=8).hexdigest()


def check_analyzer(client: OpenSearch, name: str, settings: Mapping[str, Any], index: str | None) -> None:
    """Refuse an analyzer that neither the cluster nor these settings have.

    Args:
        settings: Flat, without ``index.``.
        index: One that is there, whose own analyzers count.

    Raises:
        UsageError: There is none of this name.
    """
    if any(key.startswith(f"analysis.analyzer.{name}.") for key in settings):
        return
    body = {"analyzer": name, "text": "x"}
    try:
        with cluster_errors(f"look for the analyzer {name!r}", IndexingError):
            client.indices.analyze(body=body, index=index)
    except IndexingError as error:
        if "failed to find" not in error.message:
            raise
        raise UsageError(
            f"there is no analyzer {name!r}",
            hint=f"Name a built-in one ({_LANGUAGES}), or define it in --settings: "
            f'{{"analysis": {{"analyzer": {{"{name}": …}}}}}}',
        ) from error
