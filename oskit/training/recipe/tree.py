"""The values of a recipe before they are validated, each with the place where it was written."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from oskit.errors import DataError, UsageError
from oskit.training.recipe.yaml_document import Keys, YamlDocument, dotted, parse_yaml

FILES: tuple[Keys, ...] = (
    ("data", "train"),
    ("data", "train", 0),
    ("data", "train", "path"),
    ("data", "train", 0, "path"),
    ("encoder", "idf"),
    ("evaluation", "collection"),
    ("teachers", "cache_folder"),
)
"""Keys that name a file or folder; 0 stands for every position of a list."""

NAMES: tuple[Keys, ...] = (("encoder", "name"), ("encoder", "base"), ("teachers", "*", "name"))
"""Keys that name a folder or a repository of the Hub."""


@dataclass
class RecipeTree:
    """Values, and where they come from.

    Attributes:
        values: Dictionaries, lists and scalars.
        document: The YAML file; None for values given in Python.
        options: The keys that ``--set`` gave, each with the option as it was typed.
    """

    values: dict[str, Any]
    document: YamlDocument | None = None
    options: dict[Keys, str] = field(default_factory=dict)

    @classmethod
    def of_document(cls, document: YamlDocument) -> RecipeTree:
        """The tree of a file.

        Raises:
            DataError: It is empty, or not a mapping.
        """
        hint = "`oskit recipes show quick` shows a recipe."
        if document.value is None:
            raise DataError(f"{document.name}: the recipe is empty", hint=hint)
        if not isinstance(document.value, dict):
            raise DataError(f"{document.place(())}: a recipe is a mapping of keys to values", hint=hint)
        return cls(document.value, document)

    def place(self, keys: Keys) -> str:
        """``FILE:LINE``, or the ``--set`` option, that a key comes from."""
        option = self._option(keys)
        if option is not None:
            return option
        return "the recipe" if self.document is None else self.document.place(keys)

    def from_option(self, keys: Keys) -> bool:
        """Whether ``--set`` gave the value."""
        return self._option(keys) is not None

    def _option(self, keys: Keys) -> str | None:
        lengths = range(len(keys), 0, -1)
        found = next((self.options[keys[:n]] for n in lengths if keys[:n] in self.options), None)
        if found is None and keys and (self.document is None or keys not in self.document.lines):
            # A part that is there only because an option gave something in it.
            found = next((by for given, by in self.options.items() if given[: len(keys)] == keys), None)
        return found

    def set(self, option: str) -> None:
        """Take one ``KEY=VALUE``; the value is YAML.

        Raises:
            UsageError: It is not of that form, or the key cannot stand there.
        """
        where = f"--set {option}"
        name, equals, text = option.partition("=")
        parts = name.strip().split(".")
        if not equals or not all(parts):
            raise UsageError(f"{where}: not KEY=VALUE", hint="For example: --set schedule.steps=100")
        keys: Keys = tuple(int(part) if part.isdecimal() else part for part in parts)
        try:
            value = parse_yaml(text, where).value
        except DataError as error:
            raise UsageError(
                f"{where}: the value is not YAML", hint="Quote a text that has : or [."
            ) from error
        _put(self.values, keys, value, where)
        self.options = {known: by for known, by in self.options.items() if known[: len(keys)] != keys}
        self.options[keys] = where

    def resolve_paths(self, folder: Path) -> None:
        """Make paths absolute: those of the file from its folder, those of options from the working folder.

        A name of an encoder or a teacher is a path if it starts with a dot or if there is such a folder.
        """
        for keys, text in list(strings(self.values)):
            inner = keys[2:] if keys[:1] == ("stages",) else keys
            base = Path.cwd() if self.from_option(keys) else folder
            path = os.path.abspath(base / os.path.expanduser(text))  # noqa: PTH100, PTH111  (keeps links)
            is_file = _matches(inner, FILES) and text != "-" and not is_placeholder(text)
            is_folder = _matches(inner, NAMES) and (text.startswith((".", "~")) or os.path.isdir(path))  # noqa: PTH112
            if text and (is_file or is_folder):
                _put(self.values, keys, path, "")

    def stage(self, number: int) -> RecipeTree:
        """The tree of one stage: the recipe with what the stage changes of it."""
        start: Keys = ("stages", number)
        change = self.values["stages"][number]
        base = {key: value for key, value in self.values.items() if key != "stages"}
        document = None
        if self.document is not None:
            lines = {keys: line for keys, line in self.document.lines.items() if keys[:1] != ("stages",)}
            own = {keys[2:]: line for keys, line in self.document.lines.items() if keys[:2] == start}
            document = YamlDocument(self.document.name, None, {**lines, **own})
        options = {keys: by for keys, by in self.options.items() if keys[:1] != ("stages",)}
        options |= {keys[2:]: by for keys, by in self.options.items() if keys[:2] == start and keys[2:]}
        return RecipeTree(merge(base, change), document, options)


def is_placeholder(text: str) -> bool:
    """Whether it stands for what the user has to say: ``<pairs.jsonl>`` or ``???``."""
    return text == "???" or (text[:1] == "<" and text[-1:] == ">" and len(text) > 2)


def merge(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of ``base`` with the values of ``change``: mappings are merged, all else is replaced."""
    merged: dict[str, Any] = plain(base)
    for key, value in change.items():
        known = merged.get(key)
        both = isinstance(known, dict) and isinstance(value, Mapping)
        merged[key] = merge(known or {}, value) if both else plain(value)
    return merged


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
    elif isinstance(values, dict):
        for key, value in values.items():
            yield from strings(value, (*keys, key))
    elif isinstance(values, list):
        for number, value in enumerate(values):
            yield from strings(value, (*keys, number))


def _matches(keys: Keys, patterns: tuple[Keys, ...]) -> bool:
    return any(
        len(pattern) == len(keys)
        and all(p in ("*", k) or (p == 0 and isinstance(k, int)) for p, k in zip(pattern, keys, strict=True))
        for pattern in patterns
    )


def _put(values: Any, keys: tuple[Any, ...], value: Any, where: str) -> None:
    """Set a value deep inside; mappings and lists on the way are made."""
    for number, key in enumerate(keys):
        if isinstance(values, list):
            if not isinstance(key, int) or key > len(values):
                raise UsageError(
                    f"{where}: {dotted(keys[:number])} is a list of {len(values)}, there is no {key!r} in it"
                )
            if key == len(values):
                values.append(None)
        elif not isinstance(values, dict):
            raise UsageError(f"{where}: {dotted(keys[:number])} is a single value, it has no {key!r}")
        if number == len(keys) - 1:
            values[key] = value
            return
        inner = values[key] if isinstance(values, list) else values.get(key)
        if inner is None:
            inner = [] if isinstance(keys[number + 1], int) else {}
        elif isinstance(keys[number + 1], int) and isinstance(inner, (str, dict)):
            inner = [inner]  # data.train: one source may stand alone
        if isinstance(inner, str) and keys[number - 1 : number] == ("train",):
            inner = {"path": inner}  # and a path may stand for a source
        values[key] = inner
        values = inner
