"""Write docs/recipe-keys.md from the models of recipes, so that they cannot differ (a test compares them)."""

from __future__ import annotations

from pathlib import Path

from oskit.training.recipe.reference import recipe_keys

TARGET = Path(__file__).with_name("recipe-keys.md")

HEAD = """# Every key of a recipe

Written by `make docs` from the code; `oskit train --print-schema` prints the same as JSON schema.
[Training](training.md) explains how they play together. A key without a default must be given. In a list,
`[]` stands for an entry; `--set` takes its number: `--set data.train.0.limit=1000`.
"""


def reference() -> str:
    """The whole reference as Markdown: a table for each part."""
    parts, section = [HEAD], None
    for key in recipe_keys():
        part = key.name.partition(".")[0] if "." in key.name else ""
        if part != section:
            section = part
            title = f"`{part}`" if part else ("The run" if len(parts) == 1 else "Stages")
            parts.append(f"\n## {title}\n\n| key | takes | default | meaning |\n|---|---|---|---|\n")
        default = f"`{key.default}`" if key.default and key.default != "as below" else key.default
        cells = (f"`{key.name}`", key.type, default, key.meaning)
        parts.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n")
    return "".join(parts)


if __name__ == "__main__":
    TARGET.write_text(reference(), encoding="utf-8")
