"""The values of a recipe before they are validated, each with the place where it was written."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from oskit.errors import DataError, UsageError
from oskit.training.recipe.objective import LOSSES
from oskit.training.recipe.part import Kinds
from oskit.training.recipe.teachers import TEACHERS
from oskit.training.recipe.yaml_document import Keys, dotted, parse_yaml

FILES = re.compile(
    r"data\.train(\.\d+)?(\.path|\.join\.\w+(\.path)?)?|encoder\.idf|evaluation\.collection"
    r"|labels\.cache_folder|teachers\.[\w-]+\.texts"
)
"""Keys that name a file or folder."""

NAMES = re.compile(r"encoder\.(name|base)|teachers\.[\w-]+\.name")
"""Keys that name a folder or a repository of the Hub."""

KINDS: dict[Keys, Kinds] = {("teachers",): TEACHERS, ("loss",): LOSSES}
"""Lists whose entries may be named by their kind."""

_OPTION = "--set "


@dataclass
class RecipeTree:
    """Values, and where they come from."""

    values: dict[str, Any]  # dictionaries, lists and scalars
    # `FILE:LINE` of a key, or the `--set` option that gave it
    places: dict[Keys, str] = field(default_factory=dict)

    def place(self, keys: Keys) -> str:
        """Where a key, or the nearest one around it, was given."""
        around = (keys[:length] for length in range(len(keys), -1, -1))
        return next((self.places[one] for one in around if one in self.places), "the recipe")

    def from_option(self, keys: Keys) -> bool:
        """Whether ``--set`` gave the value."""
        return self.place(keys).startswith(_OPTION)

    def set(self, option: str) -> None:
        """Take one ``KEY=VALUE``; the value is YAML.

        Raises:
            UsageError: It is not of that form, or the key cannot stand there.
        """
        where = f"{_OPTION}{option}"
        name, equals, text = option.partition("=")
        parts = name.strip().split(".")
        if not equals or not all(parts):
            raise UsageError(f"{where}: not KEY=VALUE", hint="For example: --set schedule.steps=100")
        try:
            value = parse_yaml(text, where).value
        except DataError as error:
            raise UsageError(
                f"{where}: the value is not YAML", hint="Quote a text that has : or [."
            ) from error
        self.put(tuple(int(part) if part.isdecimal() else part for part in parts), value, where)

    def put(self, keys: Keys, value: Any, place: str) -> None:
        """Set a value deep inside; mappings and lists on the way are made.

        Raises:
            UsageError: The key cannot stand there.
        """
        values: Any = self.values
        at: Keys = ()
        for number, key in enumerate(keys):
            known = isinstance(values, dict) and key in values
            if isinstance(values, list):
                position, known = _entry(values, at, key, place)
                if number == len(keys) - 1 and isinstance(key, str) and isinstance(value, dict):
                    value = {"kind": key, **value}
                key = position
            elif not isinstance(values, dict):
                raise UsageError(f"{place}: {dotted(at)} is a single value, it has no {key!r}")
            at = (*at, key)
            if not known:
                self.places[at] = place
            if number < len(keys) - 1:
                inner = values[key] if known or isinstance(values, list) else None
                values[key] = _container(inner, at, keys[number + 1])
                values = values[key]
            elif value is None and at[:-1] in KINDS:
                del values[key]
                at = at[:-1]  # what follows has other places now
            else:
                values[key] = value
        self.places = {one: by for one, by in self.places.items() if one[: len(at)] != at}
        self.places[at] = place

    def change(self, changes: Mapping[str, Any], places: Mapping[Keys, str], keys: Keys = ()) -> None:
        """Take the values of ``changes``: mappings are merged, all else is replaced."""
        for key, value in changes.items():
            own = (*keys, key)
            if isinstance(value, Mapping) and (own in KINDS or isinstance(self._value(own), dict)):
                self.change(value, places, own)
                continue
            around = (own[:length] for length in range(len(own), -1, -1))
            place = next((places[one] for one in around if one in places), "the recipe")
            self.put(own, plain(value), place)
            self.places |= {one: by for one, by in places.items() if one[: len(own)] == own}

    def _value(self, keys: Keys) -> Any:
        """What is there; None where nothing is."""
        values: Any = self.values
        for key in keys:
            if isinstance(values, list):
                values = next(
                    (one for one in values if isinstance(one, dict) and one.get("kind") == key), None
                )
            else:
                values = values.get(key) if isinstance(values, dict) else None
        return values

    def stage(self, number: int) -> RecipeTree:
        """The tree of one stage: the recipe with what the stage changes of it."""
        start: Keys = ("stages", number)
        tree = RecipeTree(
            plain({key: value for key, value in self.values.items() if key != "stages"}),
            {keys: place for keys, place in self.places.items() if keys[:1] != ("stages",)},
        )
        own = {keys[2:]: place for keys, place in self.places.items() if keys[:2] == start}
        tree.change(self.values["stages"][number], own)
        return tree

    def resolve_paths(self, folder: Path) -> None:
        """Make paths absolute: those of the file from its folder, those of options from the working folder.

        A name of an encoder or a teacher is a path if it starts with a dot or if there is such a folder.
        """
        for keys, text in list(strings(self.values)):
            name = dotted(keys[2:] if keys[:1] == ("stages",) else keys)
            base = Path.cwd() if self.from_option(keys) else folder
            path = os.path.abspath(base / os.path.expanduser(text))  # noqa: PTH100, PTH111  (keeps links)
            is_file = FILES.fullmatch(name) and text != "-" and not is_placeholder(text)
            is_folder = NAMES.fullmatch(name) and (text.startswith((".", "~")) or os.path.isdir(path))  # noqa: PTH112
            if text and (is_file or is_folder):
                self.put(keys, path, self.place(keys))


def _entry(values: list[Any], at: Keys, key: str | int, place: str) -> tuple[int, bool]:
    """The position of a list's entry, by its number or its kind, and whether it was there; it is made."""
    if isinstance(key, str) and at in KINDS:
        if key not in KINDS[at].known:
            raise UsageError(f"{place}: {KINDS[at].otherwise}")
        found = [n for n, one in enumerate(values) if isinstance(one, dict) and one.get("kind") == key]
        if len(found) > 1:
            numbers = ", ".join(map(str, found))
            raise UsageError(f"{place}: {dotted(at)} has several of kind {key}; give a number: {numbers}")
        if found:
            return found[0], True
        values.append({"kind": key})
        return len(values) - 1, False
    if not isinstance(key, int) or key > len(values):
        raise UsageError(f"{place}: {dotted(at)} is a list of {len(values)}, there is no {key!r} in it")
    if key < len(values):
        return key, True
    values.append(None)
    return key, False


def _container(inner: Any, at: Keys, key: str | int) -> Any:
    """What holds ``key``: as it is, or made."""
    if inner is None:
        return [] if isinstance(key, int) else [{"kind": KINDS[at].default}] if at in KINDS else {}
    if isinstance(key, int) and isinstance(inner, (str, dict)):
        return [inner]  # data.train: one source may stand alone
    if isinstance(inner, str) and at[-2:-1] == ("train",):
        return {"path": inner}  # and a path may stand for a source
    return inner


def is_placeholder(text: str) -> bool:
    """Whether it stands for what the user has to say: ``<pairs.jsonl>`` or ``???``."""
    return text == "???" or (text[:1] == "<" and text[-1:] == ">" and len(text) > 2)


def merge(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a recipe's values with a change, as a stage's: ``{"loss": {"kl": {"temperature": 2}}}``."""
    tree = RecipeTree(plain(base))
    tree.change(change, {})
    return tree.values


def plain(value: Any) -> Any:
    """A copy of dictionaries and lists, whatever sort of mapping or sequence they are."""
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        return [plain(inner) for inner in value]
    return str(value) if isinstance(value, Path) else value


def strings(values: Any, keys: Keys = ()) -> Iterator[tuple[Keys, str]]:
    """All texts, with their keys."""
    if isinstance(values, str):
        yield keys, values
    elif isinstance(values, (dict, list)):
        for key, value in values.items() if isinstance(values, dict) else enumerate(values):
            yield from strings(value, (*keys, key))
