"""The values of a recipe before they are validated, each with the place where it was written."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

from oskit.errors import DataError, UsageError
from oskit.training.recipe.recipe import Recipe
from oskit.training.recipe.yaml_document import LocatedDict, LocatedList, parse_yaml

Keys = tuple[str | int, ...]
"""Where a value stands: ``("data", "train", 0, "path")``."""

OPTION = "--set "

_FILES = re.compile(
    r"data\.train(\.\d+)?(\.path|\.join\.\w+(\.path)?)?|encoder\.idf|evaluation\.collection"
    r"|labels\.cache_folder|teachers\.[\w-]+\.texts"
)
_NAMES = re.compile(r"encoder\.(name|base)|teachers\.[\w-]+\.name")
"""Keys that name a file or folder; those that name a folder or a repository of the Hub."""

_DEFAULTS = {
    name: [{"kind": part.kind} for part in Recipe.model_fields[name].default] for name in ("teachers", "loss")
}
"""Lists that stages and options change entry by entry, each named by its kind."""


def located(value: Any) -> Any:
    """A copy of dictionaries and lists, whatever sort of mapping or sequence they are, without places."""
    if isinstance(value, Mapping):
        return LocatedDict({str(key): located(inner) for key, inner in value.items()}, {})
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return LocatedList(map(located, value), {})
    return str(value) if isinstance(value, Path) else value


def set_option(values: LocatedDict, option: str) -> None:
    """Take one ``KEY=VALUE``; the value is YAML.

    Raises:
        UsageError: It is not of that form, or the key cannot stand there.
    """
    place = f"{OPTION}{option}"
    name, equals, text = option.partition("=")
    parts = name.strip().split(".")
    if not equals or not all(parts):
        raise UsageError(f"{place}: not KEY=VALUE", hint="For example: --set schedule.steps=100")
    try:
        value = located(parse_yaml(text, place))
    except DataError as error:
        raise UsageError(f"{place}: the value is not YAML", hint="Quote a text that has : or [.") from error
    changes = value
    for part in reversed(parts):
        key = int(part) if part.isdecimal() else part
        changes = LocatedDict({key: changes}, {key: place})
    change(values, changes, whole=value)


def change(values: LocatedDict, changes: LocatedDict, *, whole: Any = None) -> None:
    """Change values: mappings are merged, an entry of a list that is null goes, all else is replaced.

    Args:
        values: Those of a recipe.
        changes: What changes; entries of lists are named by their numbers, or their kinds.
        whole: A mapping in it that replaces what is there.

    Raises:
        UsageError: There is no such entry.
    """
    for name, default in _DEFAULTS.items():
        if isinstance(changes.get(name), LocatedDict) and values.get(name) is None:
            values[name] = located(default)
    _merge(values, changes, whole)


def _merge(values: LocatedDict | LocatedList, changes: LocatedDict, whole: Any) -> None:
    for key, value in changes.items():
        place = changes.places.get(key, "the recipe")
        own: Any = key
        if isinstance(values, LocatedList):
            own = _position(values, key, place, make=value is not None)
            if own is None:  # a stage takes out what is not there
                continue
        merged = isinstance(value, LocatedDict) and value is not whole
        if merged and (inner := _inner(values, own, value, place)) is not None:
            _merge(inner, value, whole)
        elif value is None and isinstance(values, LocatedList):
            del values[own]
            values.places.clear()  # those of what follows have moved
        else:
            if own != key and isinstance(value, LocatedDict):
                value = LocatedDict({"kind": key, **value}, value.places)
            values[own] = value
            values.places[own] = place


def _position(values: LocatedList, key: str | int, place: str, *, make: bool) -> int | None:
    """Where the entry of this number or kind is; the next one is made, if asked. None where there is none."""
    kinds = [one.get("kind") if isinstance(one, dict) else None for one in values]
    found = [number for number, kind in enumerate(kinds) if key in (number, kind)]
    if not found and make and (isinstance(key, str) or key == len(values)):
        found = [len(values)]
        values.places[len(values)] = place
        values.append(LocatedDict({"kind": key}, {}) if isinstance(key, str) else None)
    if len(found) > 1:
        raise UsageError(f"{place}: there are several of kind {key}; give a number: {str(found)[1:-1]}")
    if not found and (isinstance(key, int) or place.startswith(OPTION)):
        raise UsageError(f"{place}: the list of {len(values)} has no {key}")
    return found[0] if found else None


def _inner(values: Any, key: Any, changes: LocatedDict, place: str) -> Any:
    """What changes are merged into, made if needed; None where they stand in the place of what is there."""
    inner = values[key] if isinstance(values, LocatedList) else values.get(key)
    numbered = any(isinstance(one, int) for one in changes)
    if isinstance(inner, LocatedList):
        return inner if numbered or key in _DEFAULTS else None
    if isinstance(inner, LocatedDict) and not numbered:
        return inner
    own = values.places.get(key, place)
    if numbered:  # one source may stand alone
        made: Any = LocatedList([] if inner is None else [inner], {0: own})
    elif isinstance(inner, str):  # and a path for a source
        made = LocatedDict({"path": inner}, {"path": own})
    elif inner is None:
        made = LocatedDict({}, {})
    elif place.startswith(OPTION):
        raise UsageError(f"{place}: at {key} is a single value, {inner!r}")
    else:
        return None
    values[key], values.places[key] = made, place
    return made


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a recipe's values with a change, as a stage's: ``{"loss": {"kl": {"temperature": 2}}}``."""
    values: LocatedDict = located(base)
    change(values, located(changes))
    return dict(json.loads(json.dumps(values)))


def resolve_paths(values: LocatedDict, folder: Path) -> None:
    """Make paths absolute: those of the file from its folder, those of options from the working folder.

    A name of an encoder or a teacher is a path if it starts with a dot or if there is such a folder.
    """
    for text, keys, place in list(texts(values)):
        name = dotted(keys[2:] if keys[0] == "stages" else keys)
        base = Path.cwd() if place.startswith(OPTION) else folder
        path = os.path.abspath(base / os.path.expanduser(text))  # noqa: PTH100, PTH111  (keeps links)
        is_file = _FILES.fullmatch(name) and text != "-" and not is_placeholder(text)
        is_folder = _NAMES.fullmatch(name) and (text.startswith((".", "~")) or os.path.isdir(path))  # noqa: PTH112
        if text and (is_file or is_folder):
            holder: Any = reduce(getitem, keys[:-1], values)
            holder[keys[-1]] = path


def texts(
    values: LocatedDict | LocatedList, keys: Keys = (), place: str = "the recipe"
) -> Iterator[tuple[str, Keys, str]]:
    """All texts, with their keys and their places."""
    for key, value in values.items() if isinstance(values, dict) else enumerate(values):
        own, where = (*keys, key), values.places.get(key, place)
        if isinstance(value, str):
            yield value, own, where
        elif isinstance(value, (LocatedDict, LocatedList)):
            yield from texts(value, own, where)


def dotted(keys: Keys) -> str:
    """``data.train.0.path``, as ``--set`` takes it."""
    return ".".join(map(str, keys))


def is_placeholder(text: str) -> bool:
    """Whether it stands for what the user has to say: ``<pairs.jsonl>`` or ``???``."""
    return text == "???" or (text[:1] == "<" and text[-1:] == ">" and len(text) > 2)
