"""YAML by ruamel.yaml, with the place where each value was written.

Scalars follow YAML 1.2: ``1e-5`` is a number, ``no`` and ``on`` are texts, ``010`` is ten; ``2024-01-01``
(a revision, say) stays a text. Anchors, aliases and merge keys work; a key that comes twice is an error.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from io import StringIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import ConstructorError, SafeConstructor
from ruamel.yaml.error import YAMLError

from oskit.errors import DataError, first_line

MAX_VALUES = 100_000
"""With what aliases stand for: some lines of aliases of aliases are billions."""

_STANDARD = "tag:yaml.org,2002:"


class LocatedDict(dict[Any, Any]):
    """A mapping that knows where it (``""``) and each key was written: ``FILE:LINE``, or the option."""

    def __init__(self, values: Mapping[Any, Any], places: Mapping[Any, str]) -> None:
        super().__init__(values)
        self.places = dict(places)


class LocatedList(list[Any]):
    """The same of a list and its entries."""

    def __init__(self, values: Iterable[Any], places: Mapping[Any, str]) -> None:
        super().__init__(values)
        self.places = dict(places)


def read_yaml(path: Path) -> Any:
    """Read a file; as :func:`parse_yaml`.

    Raises:
        DataError: It cannot be read or is not YAML; names the line.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise DataError(f"{path}:{line}: not UTF-8", hint="Save the file as UTF-8.") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    return parse_yaml(text, str(path))


def parse_yaml(text: str, name: str) -> Any:
    """What one YAML document says: a :class:`LocatedDict` or :class:`LocatedList` of such, or a scalar.

    Raises:
        DataError: It is not YAML, or says something twice; names the line. ``name`` is what it is called.
    """
    yaml = YAML(typ="safe", pure=True)
    yaml.Constructor = _Constructor
    yaml.constructor.name = name
    try:
        return yaml.load(text)
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


def write_yaml(values: Any) -> str:
    """Values as YAML."""
    yaml, stream = YAML(pure=True), StringIO()
    yaml.width = 100
    yaml.dump(values, stream)
    return stream.getvalue()


class _Constructor(SafeConstructor):
    """Notes places; what an alias stands for is made anew, so that changing one place changes no other."""

    name = ""
    left = MAX_VALUES

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        self.left -= 1
        if node in self.recursive_objects or self.left < 0:
            problem = "an alias that contains itself, or too many values by aliases of aliases"
            raise ConstructorError(problem=problem, problem_mark=node.start_mark)
        made = super().construct_object(node, deep)
        self.constructed_objects.pop(node, None)
        return made

    def mapping(self, node: Any) -> LocatedDict:
        values = {str(key): value for key, value in self.construct_mapping(node, deep=True).items()}
        places = {str(key.value): self.place(key) for key, _ in node.value}
        return LocatedDict(values, {"": self.place(node), **places})

    def sequence(self, node: Any) -> LocatedList:
        values = self.construct_sequence(node, deep=True)
        return LocatedList(values, {number: self.place(one) for number, one in enumerate(node.value)})

    def place(self, node: Any) -> str:
        return f"{self.name}:{node.start_mark.line + 1}"


_Constructor.add_constructor(f"{_STANDARD}map", _Constructor.mapping)
_Constructor.add_constructor(f"{_STANDARD}seq", _Constructor.sequence)
_Constructor.add_constructor(f"{_STANDARD}timestamp", lambda _constructor, node: node.value)
