"""YAML by ruamel.yaml, with the line on which each value was written.

Scalars follow YAML 1.2: ``1e-5`` is a number, ``no`` and ``on`` are texts, ``010`` is ten; ``2024-01-01``
(a revision, say) stays a text. Anchors, aliases and merge keys work; a key that comes twice is an error.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq, TaggedScalar
from ruamel.yaml.constructor import ConstructorError, RoundTripConstructor
from ruamel.yaml.error import YAMLError
from ruamel.yaml.scalarbool import ScalarBoolean

from oskit.errors import DataError, first_line

Keys = tuple[str | int, ...]
"""Where a value stands: ``("data", "train", 0, "path")``."""

MAX_DEPTH = 50

MAX_VALUES = 100_000
"""With what aliases stand for: some lines of aliases of aliases are billions."""

_STANDARD = "tag:yaml.org,2002:"


@dataclass
class YamlDocument:
    """A parsed document."""

    name: str  # what messages call it: its path
    value: Any = None  # what it says: dictionaries, lists and scalars
    places: dict[Keys, str] = field(default_factory=dict)  # `FILE:LINE` of each key and list entry


def read_yaml(path: str | Path) -> YamlDocument:
    """Read a file.

    Raises:
        DataError: It cannot be read or is not YAML; names the line.
    """
    path = Path(path)
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise DataError(f"{path}:{line}: not UTF-8", hint="Save the file as UTF-8.") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    return parse_yaml(text, str(path))


def parse_yaml(text: str, name: str) -> YamlDocument:
    """Parse a text.

    Args:
        text: One YAML document.
        name: What messages call it.

    Raises:
        DataError: It is not YAML, or says something twice; names the line.
    """
    try:
        value = _yaml().load(text)
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        place = name if mark is None else f"{name}:{mark.line + 1}"
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or first_line(error)
        hint = "Look at the indentation, colons and quotes there."
        raise DataError(f"{place}: not YAML: {problem}", hint=hint) from error
    except RecursionError as error:
        raise DataError(f"{name}: nested too deeply") from error
    except ValueError as error:  # a number of thousands of digits
        raise DataError(f"{name}: not YAML: {first_line(error)}") from error
    document = YamlDocument(name)
    document.value = _plain(value, (), name, document.places, iter(range(MAX_VALUES)))
    return document


def write_yaml(values: Any) -> str:
    """Values as YAML."""
    stream = StringIO()
    _yaml().dump(values, stream)
    return stream.getvalue()


def dotted(keys: Keys) -> str:
    """``data.train.0.path``, as ``--set`` takes it."""
    return ".".join(map(str, keys))


class _Constructor(RoundTripConstructor):
    """Leaves dates as they were written, and refuses what contains itself, which would become null."""

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        if node in self.recursive_objects:
            raise ConstructorError(problem="an alias that contains itself", problem_mark=node.start_mark)
        return super().construct_object(node, deep)


_Constructor.add_constructor(f"{_STANDARD}timestamp", lambda _constructor, node: node.value)


def _yaml() -> Any:
    yaml = YAML(pure=True)
    yaml.Constructor = _Constructor
    yaml.width = 100
    return yaml


def _plain(value: Any, keys: Keys, place: str, places: dict[Keys, str], left: Iterator[int]) -> Any:
    """Dictionaries, lists and scalars; the places of keys and entries are noted in ``places``."""
    if len(keys) > MAX_DEPTH or next(left, None) is None:
        raise DataError(f"{place}: nested too deeply, or too many values by aliases of aliases")
    if isinstance(value, CommentedMap | CommentedSeq | TaggedScalar) and value.tag.value is not None:
        if isinstance(value, TaggedScalar) and value.tag.value == f"{_STANDARD}str":
            return str(value.value)
        hint = "Write the value without a tag."
        raise DataError(f"{place}: the tag {value.tag.value} is not known", hint=hint)
    if isinstance(value, CommentedMap | CommentedSeq):
        name = place.rpartition(":")[0] if keys else place
        places.setdefault(keys, f"{name}:{value.lc.line + 1}")
        entries = value.items() if isinstance(value, CommentedMap) else enumerate(value)
        found = {}
        for key, inner in entries:
            if isinstance(key, tuple):
                raise DataError(f"{places[keys]}: a key is not a single word")
            own = (*keys, key if isinstance(value, CommentedSeq) else str(key))
            if key in (value.lc.data or {}):
                places[own] = f"{name}:{value.lc.data[key][0] + 1}"
            found[own[-1]] = _plain(inner, own, places.get(own, places[keys]), places, left)
        return found if isinstance(value, CommentedMap) else list(found.values())
    if isinstance(value, ScalarBoolean):
        return bool(value)
    plain = next((kind for kind in (bool, int, float, str) if isinstance(value, kind)), None)
    return value if plain is None else plain(value)
