"""From ``--set data.train=...`` and a time to a recipe that can be edited, its reasons as comments."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from oskit.errors import DataError
from oskit.training.auto.look import STUDENTS, TEACHERS, Named, here, look
from oskit.training.auto.plan import Plan, plan
from oskit.training.auto.sentences import with_sentences
from oskit.training.recipe.file import load_recipe
from oskit.training.recipe.recipe import Recipe

if TYPE_CHECKING:
    from oskit.training.loop.events import Listener

_NOBODY = "(to be chosen)"
_WIDTH = 100


@dataclass(frozen=True)
class Chosen:
    """A recipe that was chosen for some data.

    Attributes:
        recipe: It.
        yaml: The same as a file, each choice with its reason above it.
        reasons: They, by key.
    """

    recipe: Recipe
    yaml: str
    reasons: dict[str, str]


def choose(
    overrides: Sequence[str], *, minutes: float, beside: Named, listener: Listener, name: str = "auto"
) -> Chosen:
    """Look at the data and at models, and choose a recipe.

    Args:
        overrides: ``KEY=VALUE`` as ``--set`` takes it; one of them says ``data.train``. What they set is not
            chosen: an encoder or teachers that they name are the only ones that are tried.
        minutes: What training may take, labels and measuring included.
        beside: Models that are tried beside those in the Hub's cache.
        listener: Told what goes on.
        name: Of the recipe.

    Raises:
        RecipeError: An override is wrong, or none says what to train on.
        DataError: The data cannot be read.
        TrainingError: There is no encoder to train.
    """
    from oskit.training.data.training_data import load_training_data

    given = _given(overrides)
    listener.doing("reading training data")
    train = with_sentences(given.data.train)
    data = load_training_data(train, seed=given.seed)
    if len(data) < 2 and given.evaluation.collection is None:
        raise DataError(
            "all of the data is one query, and one at least is held out to tell what the others bring",
            hint="Give more data, or evaluation.collection.",
        )
    facts = look(data, _named(given, beside), minutes=minutes, listener=listener)
    found = plan(facts)
    found.put("name", name)
    _yield_to(given, found)
    sources = [source.model_dump(mode="json", exclude_unset=True) for source in train]
    found.put("data.train", [_drawn(source, found.share) for source in sources])
    rest = [text for text in overrides if not text.partition("=")[0].strip().startswith("data.train")]
    recipe = load_recipe(found.recipe, rest)
    values = recipe.model_dump(mode="json", exclude_unset=True)
    reasons = {
        key: why if _at(values, key) == _at(found.recipe, key) else "as --set says"
        for key, why in found.reasons.items()
    }
    return Chosen(recipe, _commented(values, reasons, facts.machine, minutes), reasons)


def _yield_to(given: Recipe, found: Plan) -> None:
    """Take back what would stand beside what was given, or make it mean something else."""
    parts = given.model_fields_set
    schedule = given.schedule.model_fields_set
    if "epochs" in schedule and "steps" not in schedule:
        found.drop("schedule.steps")
        found.drop("schedule.evaluate_every")
    if given.evaluation.collection is not None:
        found.drop("data.hold_out")
    for side in ("documents", "queries"):
        if side in given.sparsity.model_fields_set:
            found.drop(f"sparsity.{side}")
    if "teachers" in parts:
        found.drop("teachers")
        own = {"stored", "cross-encoder"} & {one.kind for one in given.teachers}
        if own and "loss" not in parts:
            found.put("loss", [{"kind": "kl", "candidates": "own", "temperature": 2.0}])
    elif "loss" in parts:
        found.drop("loss")


def _given(overrides: Sequence[str]) -> Recipe:
    """A recipe of what the overrides say, and of defaults."""
    bare = {"name": "auto", "encoder": {"name": _NOBODY}, "data": {"train": "<your pairs or documents>"}}
    return load_recipe(bare, overrides)


def _named(given: Recipe, beside: Named) -> Named:
    students, teachers = (*here(STUDENTS), *beside.students), (*here(TEACHERS), *beside.teachers)
    if given.encoder.name != _NOBODY:
        students = (given.encoder.name,)
    if "teachers" in given.model_fields_set:
        teachers = tuple(one.name for one in given.teachers if one.kind == "dense")
    # Nothing is here: what `quick` would fetch.
    return Named(
        students or STUDENTS[:1],
        teachers if teachers or given.model_fields_set & {"teachers"} else TEACHERS[:1],
        directions="head" not in given.encoder.model_fields_set or given.encoder.head == "dense",
    )


def _drawn(source: dict[str, Any], share: float) -> dict[str, Any]:
    """A source of which only a share fits into the time."""
    # By significant digits: of millions of queries the share may be small, but never 0.
    return source if share == 1 else {**source, "share": float(f"{share * source.get('share', 1):.4g}")}


def _at(values: Any, key: str) -> Any:
    for part in key.split("."):
        values = values.get(part) if isinstance(values, dict) else None
    return values


def _commented(values: dict[str, Any], reasons: dict[str, str], machine: str, minutes: float) -> str:
    from ruamel.yaml import YAML
    from ruamel.yaml.comments import CommentedMap

    def tree(part: dict[str, Any], path: str, depth: int) -> CommentedMap:
        made = CommentedMap()
        for key, value in part.items():
            place = f"{path}{key}"
            made[key] = tree(value, f"{place}.", depth + 1) if isinstance(value, dict) else value
            if place in reasons:
                comment = textwrap.fill(reasons[place], _WIDTH - 2 * depth)
                made.yaml_set_comment_before_after_key(key, before=comment, indent=2 * depth)
        return made

    text = io.StringIO()
    yaml = YAML()
    yaml.default_flow_style, yaml.width = False, 4096
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.dump(tree(values, "", 0), text)
    head = f"# Chosen by `oskit train auto` for {minutes:g} minutes on {machine}. Edit it, and train by it:\n"
    return f"{head}#   oskit train THIS_FILE\n{text.getvalue()}"
