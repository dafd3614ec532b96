"""YAML that remembers on which line each value was written.

Scalars follow YAML 1.2's core schema, not PyYAML's 1.1: ``1e-5`` is a number, ``no`` and ``on`` are texts,
``010`` is ten, and ``2024-01-01`` (a revision, say) stays a text. Anchors, aliases and merge keys work.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from oskit.errors import DataError

Keys = tuple[str | int, ...]
"""Where a value stands: ``("data", "train", 0, "path")``."""

MAX_DEPTH = 50

_NULL = re.compile(r"~|null|Null|NULL|")
_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
_INT = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(
    r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
)

_STANDARD = "tag:yaml.org,2002:"
_SCALARS = ("null", "bool", "int", "float", "str", "timestamp", "value", "merge")


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
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise _syntax_error(error, text, name) from error
    except RecursionError as error:
        raise DataError(f"{name}: nested too deeply") from error
    document = YamlDocument(name, None)
    if node is not None:
        document.value = _Builder(document).build(node, (), ())
    return document


def parse_scalar(text: str) -> Any:
    """A plain scalar by YAML 1.2's core schema."""
    if _NULL.fullmatch(text):
        return None
    if _BOOL.fullmatch(text):
        return text.lower() == "true"
    if _INT.fullmatch(text):
        return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
    return float(text.replace(".inf", "inf").replace(".nan", "nan")) if _FLOAT.fullmatch(text) else text


def dotted(keys: Keys) -> str:
    """``data.train.0.path``, as ``--set`` takes it."""
    return ".".join(map(str, keys))


class _Builder:
    """Makes values of nodes, and notes their lines."""

    def __init__(self, document: YamlDocument) -> None:
        self._document = document

    def build(self, node: yaml.Node, keys: Keys, around: tuple[yaml.Node, ...]) -> Any:
        if node in around:
            raise self._error(node, "an alias that contains itself")
        if len(around) > MAX_DEPTH:
            raise self._error(node, "nested too deeply")
        self._document.lines.setdefault(keys, node.start_mark.line + 1)
        inner = (*around, node)
        if isinstance(node, yaml.MappingNode):
            return {
                key: self._entry(key_node, value, (*keys, key), inner)
                for key, (key_node, value) in self._entries(node, inner).items()
            }
        if isinstance(node, yaml.SequenceNode):
            return [self.build(value, (*keys, number), inner) for number, value in enumerate(node.value)]
        return self._scalar(node)

    def _entry(self, key: yaml.Node, value: yaml.Node, keys: Keys, around: tuple[yaml.Node, ...]) -> Any:
        self._document.lines[keys] = key.start_mark.line + 1
        return self.build(value, keys, around)

    def _entries(
        self, node: yaml.MappingNode, around: tuple[yaml.Node, ...]
    ) -> dict[str, tuple[yaml.Node, yaml.Node]]:
        own: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        merged: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise self._error(key, "a key is not a single word")
            if key.tag == f"{_STANDARD}merge":
                for other in self._merged(value):
                    if other in around:
                        raise self._error(key, "an alias that contains itself")
                    for name, entry in self._entries(other, (*around, other)).items():
                        merged.setdefault(name, entry)
                continue
            if key.value in own:
                first = own[key.value][0].start_mark.line + 1
                raise self._error(
                    key, f"the key {key.value!r} stands twice, first on line {first}", "Keep one of them."
                )
            own[key.value] = (key, value)
        return {**merged, **own}

    def _merged(self, node: yaml.Node) -> Iterator[yaml.MappingNode]:
        for other in node.value if isinstance(node, yaml.SequenceNode) else [node]:
            if not isinstance(other, yaml.MappingNode):
                raise self._error(other, "<< needs a mapping")
            yield other

    def _scalar(self, node: yaml.Node) -> Any:
        text, tag = str(node.value), node.tag.removeprefix(_STANDARD)
        if tag not in _SCALARS:
            raise self._error(node, f"the tag {node.tag} is not known", "Write the value without a tag.")
        quoted = getattr(node, "style", None) is not None
        # PyYAML resolved plain scalars by 1.1, so they are resolved again; what is quoted is a text.
        return text if tag == "str" and (quoted or self._is_tagged(node)) else parse_scalar(text)

    @staticmethod
    def _is_tagged(node: yaml.Node) -> bool:
        """``!!str 5``: a plain scalar that is said to be a text."""
        mark = node.start_mark
        return mark.buffer is not None and mark.buffer.startswith("!!str", mark.pointer)

    def _error(self, node: yaml.Node, problem: str, hint: str | None = None) -> DataError:
        return DataError(f"{self._document.name}:{node.start_mark.line + 1}: {problem}", hint=hint)


def _syntax_error(error: yaml.YAMLError, text: str, name: str) -> DataError:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    if mark is None:
        position = getattr(error, "position", None)
        line = text[:position].count("\n") + 1 if isinstance(position, int) else None
    else:
        line = mark.line + 1
    place = name if line is None else f"{name}:{line}"
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
    lines = text.splitlines()
    if line is not None and line <= len(lines) and "\t" in lines[line - 1][: _indent(lines[line - 1])]:
        return DataError(f"{place}: a tab in the indentation", hint="YAML is indented by spaces.")
    if "expected a single document" in str(error):
        return DataError(f"{place}: a second document begins", hint="A recipe is one document; remove '---'.")
    return DataError(
        f"{place}: not YAML: {problem}", hint="Look at the indentation, colons and quotes there."
    )


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())
