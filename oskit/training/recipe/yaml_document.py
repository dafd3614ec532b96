"""YAML that remembers on which line each value was written, and the YAML that a recipe is written as.

Scalars follow YAML 1.2: ``1e-5`` is a number, ``no`` and ``on`` are texts, ``010`` is ten; ``2024-01-01``
(a revision, say) stays a text. Anchors, aliases and merge keys work.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq, TaggedScalar
from ruamel.yaml.constructor import RoundTripConstructor
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
    """A parsed document.

    Attributes:
        name: What messages call it: its path.
        value: What it says: dictionaries, lists and scalars.
        lines: The line of each key and list entry, from 1.
    """

    name: str
    value: Any
    lines: dict[Keys, int] = field(default_factory=dict)

    def place(self, keys: Keys) -> str:
        """``FILE:LINE`` of a key, or of the nearest one around it that was written."""
        for length in range(len(keys), -1, -1):
            if keys[:length] in self.lines:
                return f"{self.name}:{self.lines[keys[:length]]}"
        return self.name


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
        _refuse_endless(text, name)
        value = _yaml().load(text)
    except YAMLError as error:
        raise _syntax_error(error, text, name) from error
    except ValueError as error:  # a number of thousands of digits
        raise DataError(f"{name}: not YAML: {first_line(error)}") from error
    document = YamlDocument(name, None)
    document.value = _plain(value, (), document)
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
    """Leaves dates as they were written."""


_Constructor.add_constructor(f"{_STANDARD}timestamp", lambda _constructor, node: node.value)


def _yaml() -> Any:
    yaml = YAML(pure=True)
    yaml.Constructor = _Constructor
    yaml.width = 100
    return yaml


def _refuse_endless(text: str, name: str) -> None:
    """An alias within what it stands for, and what nobody wrote by hand."""
    around: list[str | None] = []
    sizes: dict[str, int] = {}
    begun: list[int] = []
    count = 0
    for event in _yaml().parse(text):
        kind = type(event).__name__
        count += sizes.get(event.anchor, 1) if kind == "AliasEvent" else 1
        if count > MAX_VALUES:
            raise DataError(f"{name}:{event.start_mark.line + 1}: aliases of aliases make too many values")
        if kind == "AliasEvent" and event.anchor in around:
            raise DataError(f"{name}:{event.start_mark.line + 1}: an alias that contains itself")
        if kind in ("MappingStartEvent", "SequenceStartEvent"):
            around.append(event.anchor)
            begun.append(count)
            if len(around) > MAX_DEPTH:
                raise DataError(f"{name}:{event.start_mark.line + 1}: nested too deeply")
        elif kind in ("MappingEndEvent", "SequenceEndEvent"):
            anchor, before = around.pop(), begun.pop()
            if anchor is not None:
                sizes[anchor] = count - before + 1


def _plain(value: Any, keys: Keys, document: YamlDocument) -> Any:
    """Dictionaries, lists and scalars, the lines of whose keys are noted in the document."""
    if isinstance(value, CommentedMap | CommentedSeq | TaggedScalar) and value.tag.value is not None:
        if isinstance(value, TaggedScalar) and value.tag.value == f"{_STANDARD}str":
            return str(value.value)
        hint = "Write the value without a tag."
        raise DataError(f"{document.place(keys)}: the tag {value.tag.value} is not known", hint=hint)
    if isinstance(value, CommentedMap | CommentedSeq):
        document.lines.setdefault(keys, value.lc.line + 1)
        places = value.lc.data or {}
        entries = value.items() if isinstance(value, CommentedMap) else enumerate(value)
        found = {}
        for key, inner in entries:
            if isinstance(key, tuple):
                raise DataError(f"{document.place(keys)}: a key is not a single word")
            own = (*keys, key if isinstance(value, CommentedSeq) else str(key))
            if key in places:
                document.lines[own] = places[key][0] + 1
            found[own[-1]] = _plain(inner, own, document)
        return found if isinstance(value, CommentedMap) else list(found.values())
    if isinstance(value, ScalarBoolean):
        return bool(value)
    plain = next((kind for kind in (bool, int, float, str) if isinstance(value, kind)), None)
    return value if plain is None else plain(value)


def _syntax_error(error: YAMLError, text: str, name: str) -> DataError:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    if mark is None:
        position = getattr(error, "position", None)
        line = text[:position].count("\n") + 1 if isinstance(position, int) else None
    else:
        line = mark.line + 1
    place = name if line is None else f"{name}:{line}"
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
    lines = text.splitlines()
    if line is not None and line <= len(lines) and re.match(r" *\t", lines[line - 1]):
        return DataError(f"{place}: a tab in the indentation", hint="YAML is indented by spaces.")
    if "expected a single document" in str(error):
        return DataError(f"{place}: a second document begins", hint="A recipe is one document; remove '---'.")
    return DataError(
        f"{place}: not YAML: {problem}", hint="Look at the indentation, colons and quotes there."
    )
