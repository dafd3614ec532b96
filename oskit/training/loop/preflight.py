"""What can be known before a run begins: ``oskit train`` looks at all of it first, ``--dry-run`` at the same.

Nothing is written, downloaded or read whole; torch is loaded only for devices and for `schedule.arguments`.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path

from oskit.archive.idf import read_idf
from oskit.data.collection import Collection
from oskit.encoder.loader import hub
from oskit.encoder.loader.layouts import detect_layout
from oskit.errors import DataError, EncoderError, OskitError, TrainingError
from oskit.extras import require
from oskit.folders import check_writable, user_cache
from oskit.training.data.reader import read_source
from oskit.training.data.records import Parsed, error_of, existing
from oskit.training.loop.folder import DATA, FACTS, RESULT, Beginning, check_folder, stage_folders
from oskit.training.loop.reachable import check_data_set, check_model
from oskit.training.ranks import share_of
from oskit.training.recipe.file import stages_of
from oskit.training.recipe.recipe import EncoderPart, EvaluationPart, Recipe
from oskit.training.recipe.sources import DataSource, Kind
from oskit.training.recipe.teachers import AnyTeacher, ModelTeacherConfig, ReadingTeacherConfig

PACKAGES = (
    "accelerate",
    "datasets",
    "matplotlib",
    "pyarrow",
    "sentence-transformers",
    "torch",
    "transformers",
)
"""What every run needs, at its end at the latest."""

FIRST = 100
"""Records that are looked at for a first one that is right."""

Warn = Callable[[str], object]
"""Told in one line what a person should know."""


def preflight(recipe: Recipe, folder: Path, *, resume: bool, warn: Warn, dry_run: bool = False) -> Beginning:
    """Look for what would end a run: packages, its folder, models, data, disk space, devices.

    Args:
        recipe: What is to be trained.
        folder: The run's folder.
        resume: Whether the run in it is to go on. What it has done and prepared needs its sources no more.
        warn: Told what does not end it, and all problems but the one that is raised.
        dry_run: Whether nothing else will tell which teachers are dropped.

    Returns:
        How the run begins in its folder.

    Raises:
        OskitError: The first problem, of the kind that the run itself would end with.
    """
    stages = stages_of(recipe)
    _check_packages(stages)
    beginning = check_folder(folder, recipe, resume=resume)
    found, notes = _Problems(), list[str]()
    for stage, own in zip(stages, stage_folders(folder, stages), strict=True):
        if beginning == "resumed" and (own / RESULT).exists():
            continue
        prepared = beginning == "resumed" and (own / DATA / FACTS).exists()
        _check_stage(stage, found, notes.append, prepared=prepared, dry_run=dry_run)
    if beginning != "resumed":
        found.check(_check_room, stages, folder)
    for told in dict.fromkeys([*notes, *map(str, found.problems[1:])]):
        warn(told)
    if found.problems:
        raise found.problems[0]
    return beginning


def _check_packages(stages: Iterable[Recipe]) -> None:
    bm25 = any(
        (stage.data.negatives is not None and stage.data.negatives.ranker == "bm25")
        or any(teacher.kind == "bm25" for teacher in stage.labelling)
        for stage in stages
    )
    require("oskit train", "train", (*PACKAGES, *(["bm25s"] if bm25 else [])))


class _Problems:
    """Every problem once: stages have much in common."""

    def __init__(self) -> None:
        self.problems: list[OskitError] = []

    def check(self, work: Callable[..., object], *args: object) -> None:
        """Do it, and keep what it finds."""
        try:
            work(*args)
        except OskitError as error:
            if str(error) not in map(str, self.problems):
                self.problems.append(error)


def _check_stage(stage: Recipe, found: _Problems, warn: Warn, *, prepared: bool, dry_run: bool) -> None:
    found.check(_check_student, stage.encoder, warn)
    if stage.encoder.idf is not None:
        found.check(read_idf, stage.encoder.idf)
    if not prepared:
        found.check(_check_sources, stage)
    found.check(_check_evaluation, stage.evaluation, stage.data.hold_out)
    if "batch" in stage.labelled or not prepared:
        found.check(_check_teachers, stage, warn if dry_run else None)
    found.check(share_of, stage.schedule.batch_size)
    if stage.schedule.arguments:
        found.check(_check_arguments, stage)
    if stage.schedule.precision == "fp16":
        found.check(_check_device, "cuda", "schedule.precision is fp16, which needs a GPU")


def _check_student(part: EncoderPart, warn: Warn) -> None:
    try:
        check_model(part.name, part.revision)
    except (hub.NotOnHubError, hub.HubUnreachableError) as error:
        try:
            check_model(part.base, None)
        except EncoderError:
            raise error from None
        warn(
            f"encoder.name: {error.message}; the base {part.base} with a random projection is trained instead"
        )
    if (local := Path(part.name).expanduser()).is_dir():
        detect_layout(local)


def _check_teachers(stage: Recipe, warn: Warn | None) -> None:
    """Those that are used: one that is not there is dropped, unless it is required or the last one."""
    used = [teacher for teacher in dict.fromkeys((*stage.labelling, stage.miner)) if teacher is not None]
    lost: dict[AnyTeacher, OskitError] = {}
    for teacher in used:
        try:
            _check_teacher(teacher, stage)
        except OskitError as error:
            if teacher.required or teacher is stage.miner:
                raise
            lost[teacher] = error
    if lost and lost.keys() >= set(stage.labelling):
        reasons = "; ".join(f"{teacher.kind}: {why.message}" for teacher, why in lost.items())
        raise TrainingError(f"no teacher is left: {reasons}", hint="Check the names under teachers.")
    for teacher, why in lost.items():
        if warn is not None:
            warn(f"{teacher.label} would be DROPPED: {why.message}")
    if used:
        check_writable(stage.labels.cache_folder or user_cache())


def _check_teacher(teacher: AnyTeacher, stage: Recipe) -> None:
    texts = teacher.texts if isinstance(teacher, ReadingTeacherConfig) else None
    if texts is not None and not texts.is_file():
        raise DataError(f"no such file: {texts}", hint=f"{teacher.label} reads it (texts).")
    if isinstance(teacher, ModelTeacherConfig):
        check_model(teacher.name, teacher.revision)
        if teacher.device is not None:
            number = stage.teachers.index(teacher)
            _check_device(teacher.device, f"teachers.{number}.device is {teacher.device}")


def _check_sources(stage: Recipe) -> None:
    kinds = [_first_record(source) for source in stage.data.train]
    bare = all(
        kind == "documents" or source.kind == "pairs"
        for kind, source in zip(kinds, stage.data.train, strict=True)
    )
    if "own" in stage.labelled and bare and stage.data.negatives is None:
        raise no_negatives()


def no_negatives() -> TrainingError:
    """Of distillation over a query's own candidates, where it has one."""
    return TrainingError(
        "the examples have no negatives, and a teacher cannot tell anything from a positive alone",
        hint="Mine some with data.negatives: {ranker: dense}, or give the loss candidates: batch.",
    )


def _first_record(source: DataSource) -> Kind | None:
    """The kind of a source, by its first record; None where only reading it tells."""
    for place in source.places:
        if place.hub is not None:
            check_data_set(place)
        else:
            existing(place)
    if source.path == "-" or source.hub is not None:
        return None
    kinds: list[Kind] = []
    records = read_source(source, lambda kind, *_: kinds.append(kind), look_up=False)
    for item in islice(records, FIRST):
        if isinstance(item, Parsed):
            break
        if source.broken == "error":
            raise error_of(item)
    return kinds[0] if kinds else None


def _check_evaluation(evaluation: EvaluationPart, hold_out: float) -> None:
    if evaluation.collection is not None:
        next(Collection.open(evaluation.collection, evaluation.split).documents(), None)
    elif not 0 < hold_out < 1:
        raise TrainingError(
            f"there is nothing to evaluate on: data.hold_out is {hold_out:g}, and evaluation.collection is "
            "not given",
            hint="Give a collection, or hold out a share such as 0.1.",
        )


def _check_arguments(stage: Recipe) -> None:
    from oskit.training.loop.arguments import check_names  # needs torch

    check_names(stage)


def _check_device(name: str, what: str) -> None:
    import torch

    try:
        device = torch.device(name)
        there = device.type != "cuda" or (device.index or 0) < torch.cuda.device_count()
        if device.type == "mps":
            there = torch.backends.mps.is_available()
    except RuntimeError:
        there = False
    if not there:
        raise TrainingError(
            f"{what}, and this machine has none", hint="Leave it out for the best that there is."
        )


def _check_room(stages: Iterable[Recipe], folder: Path) -> None:
    """Whether the disk holds the checkpoints at least: the weights, and twice as much of the optimizer."""
    free, needed = shutil.disk_usage(check_writable(folder)).free, 0
    for stage in stages:
        schedule = stage.schedule
        kept = schedule.keep_checkpoints
        if schedule.steps is not None and schedule.evaluate_every is not None:
            kept = min(kept, -(-schedule.steps // schedule.evaluate_every))
        needed += _weights(stage.encoder) * (1 + 3 * kept)
    if needed > free:
        raise DataError(
            f"{folder} needs {needed / 1e9:.1f} GB for checkpoints and encoders, and {free / 1e9:.1f} GB are "
            "free",
            hint="Lower schedule.keep_checkpoints, or give another folder.",
        )


def _weights(part: EncoderPart) -> int:
    """Bytes of an encoder's weights, as far as they are known: not on the Hub, nor if layers are cut off."""
    local = Path(part.name).expanduser()
    if part.layers is not None or not local.is_dir():
        return 0
    files = [*local.glob("*.safetensors")] or [*local.glob("*/model*.safetensors")]
    return sum(path.stat().st_size for path in files)
