"""``oskit train``: train an encoder by a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from oskit.cli.options import output_options

if TYPE_CHECKING:
    from oskit.cli.output import Output
    from oskit.training.recipe.recipe import Recipe

RUNS = Path("runs")
"""Where runs go unless told otherwise."""

AUTO = "auto"
"""In place of a recipe: one is chosen."""


@click.command("train", short_help="Train an encoder by a recipe.")
@click.argument("recipe", required=False)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE",
              help="Change a key of the recipe, such as schedule.steps=100; several times.")  # fmt: skip
@click.option("-o", "--output", metavar="DIR", type=click.Path(path_type=Path),
              help="Folder of the run.  [runs/ and the recipe's name]")  # fmt: skip
@click.option("--minutes", type=click.FloatRange(min=0, min_open=True),
              help="Of `auto`: how long all of it may take.  [30]")  # fmt: skip
@click.option("--resume", is_flag=True, help="Go on with the run in that folder.")
@click.option("--dry-run", is_flag=True, help="Check all that can be known before, say what would be done.")
@click.option("--print-schema", is_flag=True, help="Print the JSON schema of recipes: every key, explained.")
@output_options
def train(
    recipe: str | None,
    overrides: tuple[str, ...],
    output: Path | None,
    minutes: float | None,
    resume: bool,
    dry_run: bool,
    print_schema: bool,
    out: Output,
) -> None:
    """Train an encoder by a recipe.

    RECIPE is a YAML file, the name of a recipe that comes along (`oskit recipes list`), or the folder of a
    run, whose recipe it takes; `auto` chooses one for your data, this machine and the time, says why, and
    writes it beside the folder of the run, to be edited and used again.

    The folder of the run keeps the best encoder, the resolved recipe, checkpoints, curves, a report and a
    model card. Ctrl-C saves a checkpoint; --resume goes on from it.

    \b
    Examples:
      oskit train auto --set data.train=pairs.jsonl --minutes 30
      oskit train quick --set data.train=pairs.jsonl
      oskit train my-recipe.yaml --set schedule.steps=100 -o runs/try --dry-run
      oskit train my-recipe.yaml --set 'data.train=[shop.csv, {path: articles, kind: documents}]'
      oskit train runs/quick --resume
      torchrun --standalone --nproc-per-node 2 -m oskit train my-recipe.yaml
    """
    if print_schema:
        _print_schema(out)
        return
    if recipe is None:
        raise click.UsageError("no RECIPE is given; `oskit recipes list` shows those that come along")
    if recipe == AUTO:
        folder = output or RUNS / AUTO
        read = _chosen(overrides, folder, minutes, resume, dry_run, out)
    elif minutes is not None:
        raise click.UsageError(f"--minutes is of `oskit train {AUTO}`; {recipe} says schedule.steps")
    else:
        read, folder = _read(recipe, overrides, output, out)
    if dry_run:
        from oskit.cli.commands.train_plan import show_plan

        show_plan(read, folder, resume, out)
        return
    _train(read, folder, resume, out)


def _print_schema(out: Output) -> None:
    from oskit.cli.output import Output
    from oskit.training.recipe.file import recipe_schema

    Output(json=True, quiet=out.quiet).result(recipe_schema())


def _read(name: str, overrides: tuple[str, ...], output: Path | None, out: Output) -> tuple[Recipe, Path]:
    """The recipe and the folder of its run."""
    from oskit.training.recipe.errors import RecipeError
    from oskit.training.recipe.file import load_recipe

    run = Path(name)
    source = run / "recipe.yaml" if run.is_dir() and (run / "recipe.yaml").is_file() else name
    try:
        recipe = load_recipe(source, overrides)
    except RecipeError as error:
        if len(error.problems) == 1:
            raise
        for problem in error.problems:
            click.echo(problem, err=True)
        raise RecipeError(
            [f"{len(error.problems)} mistakes in the recipe, see above"], hint=error.hint
        ) from error
    if output is None:
        output = run if isinstance(source, Path) else RUNS / recipe.name
    return recipe, output


def _chosen(
    overrides: tuple[str, ...], folder: Path, minutes: float | None, resume: bool, dry_run: bool, out: Output
) -> Recipe:
    from oskit.cli.commands.train_auto import MINUTES, chosen_recipe
    from oskit.training.ranks import world_size

    if resume:
        raise click.UsageError(f"a run is resumed by its folder: oskit train {folder} --resume")
    if world_size() > 1:
        raise click.UsageError(
            f"choose in one process: oskit train {AUTO} --dry-run; then train by that recipe"
        )
    return chosen_recipe(overrides, folder, minutes or MINUTES, write=not dry_run, out=out)


def _train(recipe: Recipe, folder: Path, resume: bool, out: Output) -> None:
    from oskit.cli.commands.train_display import Display, print_result
    from oskit.errors import TrainingInterrupted
    from oskit.training.loop.run import train as run
    from oskit.training.ranks import is_first

    try:
        with Display(out) as display, display.python_warnings():
            result = run(recipe, folder, resume=resume, listener=display)
    except TrainingInterrupted as error:
        error.hint = f"Go on with: oskit train {folder} --resume"
        raise
    if is_first():
        out.result(result.to_dict(), lambda console: print_result(console, result))
