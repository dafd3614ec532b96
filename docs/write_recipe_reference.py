"""Write docs/recipe-keys.md from the JSON schema of recipes; a test compares them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from oskit.training.recipe.file import recipe_schema

TARGET = Path(__file__).with_name("recipe-keys.md")

HEAD = """# Every key of a recipe

Written by `make docs` from the code; `oskit train --print-schema` prints the same as JSON schema.
[Training](training.md) explains how they play together. A key without a default must be given. In a list,
`[]` stands for an entry; `--set` takes its number: `--set data.train.0.limit=1000`. Teachers and losses are
lists of several kinds: `teachers.dense.name` is `name` of an entry `{kind: dense, name: ...}`, and `--set`
takes it so where there is one of that kind, and adds one where there is none.
"""

TYPES = {"string": "text", "integer": "whole number", "number": "number", "boolean": "true or false"}
LIMITS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


class Key(NamedTuple):
    """A key: with the keys around it, what it takes, its default as JSON, and a sentence or more."""

    name: str
    takes: str
    default: str
    meaning: str


def recipe_keys() -> list[Key]:
    """All keys, in the order in which they are documented."""
    schema = recipe_schema()
    return list(_keys(schema, schema["$defs"], "", {}))


def _keys(
    part: dict[str, Any], parts: dict[str, Any], prefix: str, defaults: dict[str, Any]
) -> Iterator[Key]:
    for name, entry in part["properties"].items():
        choices = entry.get("anyOf", [entry])
        inner = next((found for one in choices if (found := _inner(one, parts))), None)
        default = defaults.get(name, entry.get("default", ...))
        meaning = entry.get("description", "")
        if kinds := entry.get("items", {}).get("discriminator", {}).get("mapping"):
            known = ", ".join(str(one["kind"]) for one in default)
            yield Key(f"{name}[]", f"list of {_ticked(kinds)}", f"[{{kind: {known}}}]", meaning)
            yield from _kinds(name, {kind: _at(reference, parts) for kind, reference in kinds.items()}, parts)
            continue
        if inner is None:
            yield Key(f"{prefix}{name}", _takes(entry), _json(default), meaning)
            continue
        many = any(one.get("type") == "array" for one in choices)
        start = f"{prefix}{name}{'[]' if many else ''}"
        given = default if isinstance(default, dict) else {}
        if many or len(choices) > 1:
            shown = "as below" if given else _json(default)
            yield Key(start, "list" if many else "part", shown, meaning or inner["description"])
        yield from _keys(inner, parts, f"{start}.", given)


def _kinds(name: str, kinds: dict[str, dict[str, Any]], parts: dict[str, Any]) -> Iterator[Key]:
    """What all entries of a list have, and then what those of each kind have beside it."""
    first, *others = (part["properties"] for part in kinds.values())
    common = {key: entry for key, entry in first.items() if all(one.get(key) == entry for one in others)}
    yield from _keys({"properties": common}, parts, f"{name}[].", {})
    for kind, part in kinds.items():
        own = {key: entry for key, entry in part["properties"].items() if key not in common}
        described = {**own.pop("kind"), "default": ...}
        yield from _keys({"properties": {"kind": described, **own}}, parts, f"{name}.{kind}.", {})


def _inner(entry: dict[str, Any], parts: dict[str, Any]) -> dict[str, Any] | None:
    """The part that a key holds, or a list of which."""
    reference = entry.get("$ref") or entry.get("items", {}).get("$ref")
    return _at(reference, parts) if reference else None


def _at(reference: str, parts: dict[str, Any]) -> dict[str, Any]:
    return parts[reference.rpartition("/")[2]]


def _takes(entry: dict[str, Any]) -> str:
    if "enum" in entry:
        return _ticked(entry["enum"])
    if "const" in entry:
        return f"`{entry['const']}`"
    if "anyOf" in entry:
        return " or ".join(_takes(one) for one in entry["anyOf"] if one.get("type") != "null")
    if entry.get("type") == "array":
        return f"list of {_takes(entry.get('items', {}))}"
    told = [f"{sign} {entry[limit]:g}" for limit, sign in LIMITS.items() if limit in entry]
    return " ".join([TYPES.get(entry.get("type", ""), "mapping"), ", ".join(told)]).strip()


def _ticked(values: Iterable[str]) -> str:
    return ", ".join(f"`{value}`" for value in values)


def _json(value: Any) -> str:
    return "" if value is ... else json.dumps(value, ensure_ascii=False)


def reference() -> str:
    """The whole reference as Markdown: a table for each part."""
    parts, section = [HEAD], None
    for key in recipe_keys():
        part = re.split(r"[.\[]", key.name)[0] if re.search(r"[.\[]", key.name) else ""
        if part != section:
            section = part
            title = f"`{part}`" if part else ("The run" if len(parts) == 1 else "Stages")
            parts.append(f"\n## {title}\n\n| key | takes | default | meaning |\n|---|---|---|---|\n")
        default = f"`{key.default}`" if key.default and key.default != "as below" else key.default
        cells = (f"`{key.name}`", key.takes, default, key.meaning)
        parts.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n")
    return "".join(parts)


if __name__ == "__main__":
    TARGET.write_text(reference(), encoding="utf-8")
