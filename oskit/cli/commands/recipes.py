"""``oskit recipes``: the training recipes that come with oskit."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from oskit.cli.options import output_options

if TYPE_CHECKING:
    from rich.console import Console

    from oskit.cli.output import Output


@click.group("recipes", short_help="List, show and copy training recipes.")
def recipes() -> None:
    """List, show and copy training recipes.

    `oskit train NAME` runs one as it is, with --set for what is yours. To change more, copy it into a file.

    \b
    Examples:
      oskit recipes list
      oskit recipes show inference-free-v3
      oskit recipes copy stage-1 my-recipe.yaml
    """


@recipes.command("list")
@output_options
def list_recipes(out: Output) -> None:
    """List the recipes.

    \b
    Examples:
      oskit recipes list
      oskit recipes list --json
    """
    from oskit.training.recipe.file import described_recipes

    found = described_recipes()

    def show(console: Console) -> None:
        width = max(map(len, found))
        for name, description in found.items():
            console.print(f"{name:<{width}}  {description}", markup=False, soft_wrap=True)

    out.result([{"name": name, "description": told} for name, told in found.items()], show)


@recipes.command("show")
@click.argument("name")
@output_options
def show_recipe(name: str, out: Output) -> None:
    """Print the recipe NAME as YAML.

    \b
    Examples:
      oskit recipes show quick
    """
    from oskit.training.recipe.file import included_text

    text = included_text(name)
    out.result({"name": name, "yaml": text}, lambda _console: click.echo(text, nl=False))


@recipes.command("copy")
@click.argument("name")
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Replace FILE if it is there.")
@output_options
def copy_recipe(name: str, file: Path | None, force: bool, out: Output) -> None:
    """Write the recipe NAME into FILE, to be changed.  [NAME.yaml]

    \b
    Examples:
      oskit recipes copy quick
      oskit recipes copy stage-1 recipes/shop.yaml
    """
    from oskit.errors import UsageError
    from oskit.training.recipe.file import included_text

    text = included_text(name)
    target = file or Path(f"{name}.yaml")
    if target.is_dir():
        target = target / f"{name}.yaml"
    try:
        with target.open("w" if force else "x", encoding="utf-8") as stream:
            stream.write(text)
    except FileExistsError as error:
        raise UsageError(f"{target} is there already", hint="Name another file, or use --force.") from error
    except OSError as error:
        raise UsageError(f"cannot write {target}: {error.strerror or error}") from error
    out.result({"name": name, "file": target})
    out.note(f"Wrote {target}. Say in it what is yours, then: oskit train {target}")
