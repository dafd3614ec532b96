"""What can be known before a run begins: ``oskit train`` looks at all of it first, ``--dry-run`` at the same.

Nothing is written, downloaded or read whole; torch is loaded only for devices and for `schedule.arguments`.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Literal

from oskit.archive.idf import read_idf
from oskit.data.collection import Collection
from oskit.encoder.loader import hub
from oskit.encoder.loader.layouts import detect_layout
from oskit.errors import (
    DataError,
    EncoderError,
    EncoderNotFoundError,
    OskitError,
    TrainingError,
    first_line,
)
from oskit.extras import require
from oskit.folders import check_writable, user_cache
from oskit.training.data.reader import read_source
from oskit.training.data.records import Parsed, error_of, existing
from oskit.training.loop.folder import DATA, FACTS, Beginning, check_folder, is_done, stage_folders
from oskit.training.ranks import share_of
from oskit.training.recipe.file import STAGE, stages_of
from oskit.training.recipe.recipe import Recipe
from oskit.training.recipe.sources import DataSource, Kind, Place
from oskit.training.recipe.teachers import AnyTeacher, ModelTeacherConfig, ReadingTeacherConfig

PACKAGES = (
    *("accelerate", "datasets", "matplotlib", "pyarrow", "sentence-transformers", "torch", "transformers"),
)
"""What every run needs, at its end at the latest."""

FIRST = 100
"""Records that are looked at for a first one that is right."""

Warn = Callable[[str], object]
"""Told in one line what a person should know."""


def preflight(recipe: Recipe, folder: Path, *, resume: bool, warn: Warn, dry_run: bool = False) -> Beginning:
    """Look for what would end a run: packages, its folder, models, data, disk space, devices.

    What a run that is resumed has done and prepared needs its sources and teachers no more.

    Args:
        recipe: What is to be trained.
        folder: The run's folder.
        resume: Whether the run in it is to go on.
        warn: Told what does not end it, and all problems but the one that is raised.
        dry_run: Whether nothing else will tell which teachers are dropped.

    Raises:
        OskitError: The first problem, of the kind that the run itself would end with.
    """
    stages, checks = stages_of(recipe), list[Callable[[], object]]()
    _check_packages(stages)
    beginning = check_folder(folder, recipe, resume=resume)
    notes, problems = list[str](), dict[str, OskitError]()
    for stage, own in zip(stages, stage_folders(folder, stages), strict=True):
        if beginning != "resumed" or not is_done(own):
            prepared = beginning == "resumed" and (own / DATA / FACTS).exists()
            checks += _checks_of(stage, notes.append, prepared=prepared, dry_run=dry_run)
    if beginning != "resumed":
        checks.append(lambda: _check_room(stages, folder))
    for check in checks:
        try:
            check()
        except OskitError as error:  # once: stages have much in common
            problems.setdefault(str(error), error)
    for told in dict.fromkeys([*notes, *list(problems)[1:]]):
        warn(told)
    for problem in problems.values():
        raise problem
    if resume and beginning == "new":
        warn(f"there is no run in {folder} to go on with: a new one begins")
    return beginning


def _check_packages(stages: Iterable[Recipe]) -> None:
    bm25 = any(
        (stage.data.negatives is not None and stage.data.negatives.ranker == "bm25")
        or any(teacher.kind == "bm25" for teacher in stage.labelling)
        for stage in stages
    )
    require("oskit train", "train", (*PACKAGES, *(["bm25s"] if bm25 else [])))


def _checks_of(stage: Recipe, warn: Warn, *, prepared: bool, dry_run: bool) -> Iterator[Callable[[], object]]:
    schedule, idf = stage.schedule, stage.encoder.idf
    yield lambda: _check_student(stage, warn)
    if idf is not None:
        yield lambda: read_idf(idf)
    if not prepared:
        yield lambda: _check_sources(stage)
        yield lambda: _check_teachers(stage, warn if dry_run else lambda _: None)
    yield lambda: _check_evaluation(stage)
    yield lambda: share_of(schedule.batch_size)
    if schedule.arguments:
        yield lambda: _check_arguments(stage)
    if schedule.precision == "fp16":
        yield lambda: _check_device("cuda", "schedule.precision is fp16, which needs a GPU")


def _check_student(stage: Recipe, warn: Warn) -> None:
    part = stage.encoder
    try:
        _check_model(part.name, part.revision)
    except (hub.NotOnHubError, hub.HubUnreachableError) as error:
        try:
            _check_model(part.base, None)
        except EncoderError:
            raise error from None
        warn(
            f"encoder.name: {error.message}; the base {part.base} with a random projection is trained instead"
        )
    if (local := Path(part.name).expanduser()).is_dir():
        detect_layout(local)


def _check_teachers(stage: Recipe, warn: Warn) -> None:
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
        warn(f"{teacher.label} would be DROPPED: {why.message}")
    if used:
        check_writable(stage.labels.cache_folder or user_cache())


def _check_teacher(teacher: AnyTeacher, stage: Recipe) -> None:
    texts = teacher.texts if isinstance(teacher, ReadingTeacherConfig) else None
    if texts is not None and not texts.is_file():
        raise DataError(f"no such file: {texts}", hint=f"{teacher.label} reads it (texts).")
    if isinstance(teacher, ModelTeacherConfig):
        _check_model(teacher.name, teacher.revision)
        if teacher.device is not None:
            number = stage.teachers.index(teacher)
            _check_device(teacher.device, f"teachers.{number}.device is {teacher.device}")


def _check_sources(stage: Recipe) -> None:
    bare = [_first_kind(source) == "documents" or source.kind == "pairs" for source in stage.data.train]
    if "own" in stage.labelled and all(bare) and stage.data.negatives is None:
        raise no_negatives()


def no_negatives() -> TrainingError:
    """Of distillation over a query's own candidates, where it has one."""
    return TrainingError(
        "the examples have no negatives, and a teacher cannot tell anything from a positive alone",
        hint="Mine some with data.negatives: {ranker: dense}, or give the loss candidates: batch.",
    )


def _first_kind(source: DataSource) -> Kind | None:
    """The kind of a source, by its first record; None where only reading it tells."""
    for place in source.places:
        if place.hub is not None:
            _check_data_set(place)
        else:
            existing(place)
    if source.path == "-" or source.hub is not None:
        return None
    kinds: list[Kind] = []
    records = read_source(source, lambda kind, *_: kinds.append(kind), None)
    for item in islice(records, FIRST):
        if isinstance(item, Parsed):
            break
        if source.broken == "error":
            raise error_of(item)
    return kinds[0] if kinds else None


def _check_evaluation(stage: Recipe) -> None:
    evaluation, share = stage.evaluation, stage.data.hold_out
    if evaluation.collection is not None:
        next(Collection.open(evaluation.collection, evaluation.split).documents(), None)
    elif not 0 < share < 1:
        raise TrainingError(
            f"there is nothing to evaluate on: data.hold_out is {share:g}, and evaluation.collection is "
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
    """Whether the disk holds the checkpoints at least: the weights, and twice as much of the optimizer.

    Weights are known of encoders that are here, and not if layers are cut off.
    """
    free, needed = shutil.disk_usage(check_writable(folder)).free, 0
    for stage in stages:
        schedule, local = stage.schedule, Path(stage.encoder.name).expanduser()
        kept = schedule.keep_checkpoints
        if schedule.steps is not None and schedule.evaluate_every is not None:
            kept = min(kept, -(-schedule.steps // schedule.evaluate_every))
        if stage.encoder.layers is None and local.is_dir():
            files = [*local.glob("*.safetensors")] or [*local.glob("*/model*.safetensors")]
            needed += sum(path.stat().st_size for path in files) * (1 + 3 * kept)
    if needed > free:
        raise DataError(
            f"{folder} needs {needed / 1e9:.1f} GB for checkpoints and encoders, and {free / 1e9:.1f} GB are "
            "free",
            hint="Lower schedule.keep_checkpoints, or give another folder.",
        )


def _check_model(name: str, revision: str | None) -> None:
    """Make sure that a model is a folder, in the Hub's cache, or on the Hub.

    Raises:
        NotOnHubError: None of them.
        HubUnreachableError: Neither of the first two, and the Hub gives no answer.
        EncoderError: The Hub has it, but no such revision.
    """
    if STAGE.search(name) or Path(name).expanduser().is_dir():
        return
    hint = "Check the name of the model and the network."
    if not hub.is_repository_name(name):
        raise hub.NotOnHubError(f"there is no folder {name}", hint=hint)
    try:
        hub.fetch(name, hub.HubOptions(revision=revision, local_files_only=True))
    except EncoderError:
        try:
            _ask_hub(name, revision, "model")
        except (hub.NotOnHubError, hub.HubUnreachableError) as error:
            raise type(error)(f"there is no folder {name}, and {error.message}", hint=hint) from error


def _check_data_set(place: Place) -> None:
    """Make sure that a data set is on the Hub, if it answers: `datasets` may have it in its cache.

    Raises:
        DataError: It is not.
    """
    assert place.hub is not None
    try:
        with suppress(hub.HubUnreachableError):
            _ask_hub(place.hub, place.revision, "dataset")
    except EncoderNotFoundError as error:
        hint = "Check its name, revision and the login, or give a file."
        raise DataError(error.message, hint=hint) from error


def _ask_hub(name: str, revision: str | None, kind: Literal["model", "dataset"]) -> None:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    if hub.is_offline():
        raise hub.HubUnreachableError("the Hub must not be asked (HF_HUB_OFFLINE)")
    try:
        HfApi(endpoint=hub.endpoint()).repo_info(name, revision=revision, repo_type=kind, timeout=30)
    except RevisionNotFoundError as error:
        raise EncoderNotFoundError(f"the Hub's {kind} {name} has no revision {revision!r}") from error
    except RepositoryNotFoundError as error:
        raise hub.NotOnHubError(f"the Hub has no {kind} {name}, or you may not read it") from error
    except Exception as error:  # whatever huggingface_hub and its HTTP library raise
        raise hub.HubUnreachableError(f"no answer from the Hub: {first_line(error)}") from error
