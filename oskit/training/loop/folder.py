"""The folder of a run: whether one may begin, begin again or go on there, and what it begins with."""

from __future__ import annotations

import fcntl
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Literal

from oskit.data.atomic import write_whole
from oskit.errors import DataError, OskitError, UsageError
from oskit.folders import check_writable
from oskit.training.ranks import world_size
from oskit.training.recipe.file import load_recipe, resolved_yaml
from oskit.training.recipe.recipe import Recipe
from oskit.training.report.result import BEST

RECIPE = "recipe.yaml"
MARKER = ".oskit-run"
"""Says that what a run writes in this folder was written by one, so that another may replace it; locked while
a run goes on there."""

DATA, FACTS = "data", "prepared.json"
"""What was prepared; the file comes last, so its presence says that the rest is whole."""
CHECKPOINTS = "checkpoints"
RESULT = "stage.json"

Beginning = Literal["new", "again", "resumed"]
"""``again``: in place of a run that ended before it had a checkpoint."""

_STATE = ("checkpoints/checkpoint-*/trainer_state.json", RESULT, BEST)
"""What a run would lose."""

_TABLES = ("records", "examples", "corpus", "mined", "labelled", "ready", "asked")
_REPLACED = (
    *(RECIPE, "environment.json", "before.json", "log.jsonl"),
    *("data/prepared.json", "data/idf.npy", "data/refused-*.jsonl"),
    *(f"data/{name}.arrow{part}" for name in _TABLES for part in ("", ".part")),
    *("data/batch-teachers/batch-*", "data/batch-teachers/teachers.json"),
    *("data/held-out/corpus.jsonl", "data/held-out/queries.jsonl"),
    *("data/held-out/qrels/test.tsv", "data/held-out/qrels/pooled.tsv"),
)
"""What a run writes before its first checkpoint."""

_EMPTIED = (*("data/held-out/qrels", "data/held-out", "data/batch-teachers", "data", "checkpoints", ""),)

_HARMLESS = re.compile(
    r"(stages\.\d+\.)?(name|description|guards\..*|schedule\.(keep_checkpoints|micro_batch_size"
    r"|gradient_checkpointing|arguments\.dataloader_\w+)|labels\.cache_folder"
    r"|teachers\.[\w-]+\.(device|required|trust_remote_code))"
)
"""Keys that a run may go on with though they changed: neither its data nor its optimizer's state has them."""


def stage_folders(folder: Path, stages: Sequence[Recipe]) -> list[Path]:
    """Where each stage keeps its things."""
    if len(stages) == 1:
        return [folder]
    return [folder / f"stage-{number}" for number in range(1, len(stages) + 1)]


def is_done(stage: Path) -> bool:
    """Whether a stage has its result; one whose encoder was removed is chosen again from its checkpoints."""
    return (stage / RESULT).exists() and (stage / BEST).is_dir()


def check_folder(folder: Path, recipe: Recipe, *, resume: bool) -> Beginning:
    """How a run of the recipe would begin in the folder; changes nothing.

    Raises:
        UsageError: It may not: the folder holds something else, or a run of another recipe, or one goes on.
        DataError: The folder cannot be written.
    """
    there = check_writable(folder)
    if there != folder.absolute() or not any(folder.iterdir()):
        return "new"
    replaceable = (folder / MARKER).is_file()
    if replaceable:
        with (folder / MARKER).open(encoding="utf-8") as marker:
            _lock(marker, fcntl.LOCK_SH, folder)
        replaceable = not any(_found(folder, _STATE))
    changed = None
    if resume and (folder / RECIPE).is_file():
        changed = _changed_keys(folder / RECIPE, recipe)
        if not changed:
            return "resumed"
    if not replaceable:
        if changed:
            raise UsageError(
                f"the run in {folder} had another recipe: {', '.join(changed)}",
                hint=f"To go on with its own: oskit train {folder} --resume. For another run give another "
                "output folder.",
            )
        raise UsageError(
            f"{folder} exists and is not empty",
            hint="Give a new folder, or go on with the run in it: --resume.",
        )
    if world_size() > 1:  # the other processes would take what is there for what the first one prepares
        raise UsageError(
            f"a run in {folder} ended before its first checkpoint",
            hint="Several processes need a new folder: remove it, or give another one.",
        )
    return "again"


def open_folder(folder: Path, recipe: Recipe, beginning: Beginning) -> IO[str]:
    """Write the recipe there; of a run in whose place this one begins nothing stays, of other files all.

    Returns:
        What keeps other runs out of the folder until it is closed, or the process ends.

    Raises:
        UsageError: A run goes on there.
        DataError: The folder cannot be written.
    """
    # More than when it was checked, which was before the folder was locked; other processes of ours make
    # folders.
    more = {"new": (RECIPE, *_STATE), "again": _STATE, "resumed": ()}[beginning]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        marker = (folder / MARKER).open("a", encoding="utf-8")
        _lock(marker, fcntl.LOCK_EX, folder)
        if any(_found(folder, more)):
            raise UsageError(f"another run began in {folder} meanwhile", hint="Give another output folder.")
        if not marker.tell():
            marker.write("`oskit train` made this folder.\n")
            marker.flush()
        if beginning == "again":
            _clear(folder)
        write_whole(folder / RECIPE, resolved_yaml(recipe))  # in place of a link, not of what it leads to
    except OSError as error:
        raise DataError(f"cannot write {folder}: {error.strerror or error}") from error
    return marker


def _lock(marker: IO[str], kind: int, folder: Path) -> None:
    try:
        fcntl.flock(marker, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UsageError(
            f"another run goes on in {folder}", hint="Wait until it has ended, or give another output folder."
        ) from None
    except OSError:
        return  # a file system without locks


def _clear(folder: Path) -> None:
    for path in _found(folder, _REPLACED):
        path.unlink()
    for path in _found(folder, ("checkpoints/checkpoint-*",)):
        if re.fullmatch(r"checkpoint-\d+", path.name) and not path.is_symlink():
            shutil.rmtree(path)  # none has a state: it was being written
    for path in _found(folder, _EMPTIED):
        if path != folder:
            with suppress(OSError):  # something of somebody else is in it
                path.rmdir()


def _found(folder: Path, patterns: tuple[str, ...]) -> Iterator[Path]:
    """What is there, of the run itself and of its stages; nothing that a link leads out of the folder to."""
    home = folder.resolve()
    stages = (path for path in folder.glob("stage-*/") if re.fullmatch(r"stage-\d+", path.name))
    for own in (folder, *sorted(stages)):
        for pattern in patterns:
            for path in list(own.glob(pattern)) if pattern else [own]:
                if path.resolve().is_relative_to(home):
                    yield path


def _changed_keys(kept: Path, recipe: Recipe) -> list[str]:
    """What the recipe of a run has otherwise, ``KEY is X and was Y`` each; keys that do no harm aside."""
    try:
        before = dict(_flat(load_recipe(kept).model_dump(mode="json")))
    except OskitError as error:
        return [f"{kept} cannot be read: {error.message}"]
    now = dict(_flat(recipe.model_dump(mode="json")))
    return [
        f"{key} is {now.get(key, 'not given')} and was {before.get(key, 'not given')}"
        for key in {**now, **before}
        if now.get(key) != before.get(key) and not _HARMLESS.fullmatch(key)
    ]


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, part in inner:
        yield from _flat(part, f"{key}.{name}" if key else str(name))
    if not inner:
        yield key, value
