"""Several teachers as one: who scores the examples, and how their scores become labels."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

import numpy as np
from pydantic import TypeAdapter

from oskit.errors import DataError, TrainingError
from oskit.training.data.arrow import (
    EXAMPLES,
    LABELLED,
    LABELS,
    DataFolder,
    RowWriter,
    candidate_blocks,
    list_column,
    open_rows,
)
from oskit.training.data.training_data import TrainingData
from oskit.training.recipe.teachers import (
    AnyTeacher,
    CrossEncoderConfig,
    DenseTeacherConfig,
    ItselfTeacherConfig,
    LabelsPart,
    Normalization,
    SparseTeacherConfig,
    StoredTeacherConfig,
    Teachers,
)
from oskit.training.teachers.labels import alike, weighted_average
from oskit.training.teachers.models import CrossEncoderTeacher, DenseTeacher, SparseTeacher
from oskit.training.teachers.report import EnsembleReport, TeacherReport
from oskit.training.teachers.score_cache import default_cache_folder
from oskit.training.teachers.teacher import (
    Bm25Teacher,
    Progress,
    StoredScores,
    Teacher,
    tell_nobody,
)

if TYPE_CHECKING:
    from oskit.training.recipe.recipe import EncoderPart, Recipe

T = TypeVar("T")

_EXAMPLES = 1024
"""Examples that are labelled at once."""


class TeacherWarning(UserWarning):
    """A teacher was dropped."""


@dataclass
class Member:
    """A teacher of the ensemble; ``reason`` says why it was dropped, if it was."""

    config: AnyTeacher
    teacher: Teacher | None = None
    reason: str | None = None

    @property
    def asked(self) -> Teacher | None:
        """The teacher, if it can be asked."""
        return None if self.reason else self.teacher

    @property
    def used(self) -> bool:
        """Whether it labels."""
        return self.asked is not None and self.config.weight > 0


class EnsembleTeacher:
    """Teachers whose scores are normalised for each query, averaged by weight, and scaled.

    For a query with the candidates ``d`` and teachers ``t`` of weights ``w_t``::

        label(d) = scale * sum_t w_t * norm_t(d) / sum_t w_t
        norm_t(d) = (s_t(d) - min s_t) / (max s_t - min s_t)        all 0 where the scores are all equal

    Min and max are taken over the query's candidates: teachers of different kinds score on different scales
    (cosines, inner products, logits). This is the heterogeneous ensemble of Geng et al., "Towards Competitive
    Search Relevance For Inference-Free Learned Sparse Retrievers" (arXiv 2411.04403), with equal weights in
    their code (``BiEncoderWrapper`` in opensearch-sparse-model-tuning-sample) and ``score_scale: 30`` in its
    configurations; there 1e-6 is added to the denominator, here equal scores are a case of their own. A
    candidate that only some of the teachers know (stored scores, beside others) has the average of these;
    one that none knows has no label (NaN).

    A teacher that cannot be loaded, or fails while it scores, is dropped with a :class:`TeacherWarning`, and
    the weights of the others are renormalised; :attr:`report` lists it. That is before any label is written;
    later it is an error: all labels are of the same teachers. Models are loaded when the cache lacks
    something, one at a time.

    Args:
        teachers: Who, as in a recipe; of weight 0 only dense ones are opened, for mining.
        labels: How scores become labels, and where they are kept, as in a recipe.
        encoder: The encoder that is trained, which the kind ``itself`` stands for.

    Raises:
        TrainingError: A required teacher is not there, or none is left.
        DataError: The cache cannot be written, or a file of ``texts`` not be read.
    """

    def __init__(
        self,
        teachers: Sequence[AnyTeacher | Mapping[str, Any]],
        labels: LabelsPart | Mapping[str, Any] | None = None,
        *,
        encoder: EncoderPart | None = None,
    ) -> None:
        self.labels = LabelsPart.model_validate(labels or {})
        self._encoder = encoder
        self._counts = {"candidates": 0, "unknown": 0, "alike": 0}
        configs: tuple[AnyTeacher, ...] = TypeAdapter(Teachers).validate_python(list(teachers))
        self.members = [Member(config) for config in configs]
        for member in self.members:
            if member.config.weight > 0 or isinstance(member.config, DenseTeacherConfig):
                with self._trying(member):
                    member.teacher = self._open(member.config)
        self._labelling = any(member.config.weight > 0 for member in self.members)
        if self._labelling:
            self._require_one()

    @classmethod
    def from_recipe(cls, recipe: Recipe) -> Self:
        """The teachers that a recipe needs: those that label, and the one that mines."""
        needed = [one for one in recipe.teachers if one in recipe.labelling or one == recipe.miner]
        return cls(needed, recipe.labels, encoder=recipe.encoder)

    @property
    def report(self) -> EnsembleReport:
        """Which teachers there are, which were dropped and why, and what the cache had."""
        teachers = [self._report(member) for member in self.members]
        return EnsembleReport(teachers, self.labels.scale, **self._counts)

    def label(
        self, data: TrainingData, *, folder: Path | None = None, progress: Progress = tell_nobody
    ) -> TrainingData:
        """Label the candidates of all examples.

        ``labelled.arrow`` is written into the folder; without it into one that goes with the data.

        Returns:
            The data with a column ``labels``, aligned with ``candidates``; one that was there is replaced. Of
            a query with a single candidate it is ``[0.0]`` under ``minmax``.

        Raises:
            TrainingError: A required teacher failed, or none is left.
            DataError: The labels cannot be written.
        """
        if not len(data.examples):
            raise TrainingError("there are no examples to label", hint="Check the training data.")
        found = [member for member, _ in self.ask(lambda teacher: teacher.compute(data, progress))]
        place = DataFolder(folder)
        path = place.path / "labelled.arrow"
        with RowWriter(path, LABELLED) as writer:
            for block in candidate_blocks(data.examples.select_columns(EXAMPLES.names), _EXAMPLES):
                raw = [
                    (member.teacher.scores(data, block), self.normalization(member), member.config.weight)
                    for member in found
                    if member.teacher is not None
                ]
                labels = self.labels.scale * weighted_average(raw, block.counts)
                self._counts["candidates"] += len(labels)
                self._counts["unknown"] += int(np.isnan(labels).sum())
                self._counts["alike"] += alike(labels, block.counts)
                writer.add_table(block.table.append_column(LABELS, list_column(labels, block.counts)))
        return data.with_examples(open_rows(path), keep_alive=place)

    def normalization(self, member: Member) -> Normalization:
        """How a teacher's scores are normalised."""
        return member.config.normalize or self.labels.normalize

    def ask(self, work: Callable[[Teacher], T]) -> list[tuple[Member, T]]:
        """Have each labelling teacher do something; one that fails is dropped, and nothing of it is used.

        Raises:
            TrainingError: A required teacher failed, or none is left.
        """
        found = {}
        for number, member in enumerate(self.members):
            if member.used and member.teacher is not None:
                with self._trying(member):
                    found[number] = member, work(member.teacher)
        self._require_one()
        return list(found.values())

    @property
    def dense(self) -> DenseTeacher | None:
        """The first dense teacher that is left, for mining."""
        found = (member.asked for member in self.members)
        return next((teacher for teacher in found if isinstance(teacher, DenseTeacher)), None)

    def fail(self, teacher: Teacher, error: Exception) -> None:
        """Drop a teacher that failed elsewhere, in mining; TrainingError if it is required, or the last."""
        self._drop(next(member for member in self.members if member.teacher is teacher), error)
        if self._labelling:
            self._require_one()

    def release(self) -> None:
        """Let go of the models that are loaded, to make room for the student."""
        for member in self.members:
            if member.asked is not None:
                member.asked.release()

    def _open(self, config: AnyTeacher) -> Teacher:
        folder = self.labels.cache_folder
        cache = (default_cache_folder() if folder is None else folder).expanduser()
        match config:
            case DenseTeacherConfig():
                return DenseTeacher(config, cache)
            case SparseTeacherConfig():
                return SparseTeacher(config, cache)
            case CrossEncoderConfig():
                return CrossEncoderTeacher(config, cache)
            case ItselfTeacherConfig():
                return self._itself(config, cache)
            case StoredTeacherConfig():
                return StoredScores(config)
            case _:
                return Bm25Teacher(config)

    def _itself(self, config: ItselfTeacherConfig, cache: Path) -> Teacher:
        encoder = self._encoder
        if encoder is None:
            raise TrainingError("no encoder is trained that could teach itself", hint="Name its folder.")
        given = config.model_dump(exclude={"kind"})
        sparse = SparseTeacherConfig(**given, name=encoder.name, revision=encoder.revision)
        teacher = SparseTeacher(sparse, cache, activation=encoder.activation)
        teacher.kind = config.kind
        return teacher

    @contextmanager
    def _trying(self, member: Member) -> Iterator[None]:
        """Drop the teacher if the block fails."""
        try:
            yield
        except DataError:  # files that cannot be read or written: no fault of the teacher
            raise
        except Exception as error:  # whatever a model's own code raises
            self._drop(member, error)

    def _drop(self, member: Member, error: Exception) -> None:
        reason = " ".join(str(error).split()) or type(error).__name__
        name = member.config.label
        if member.config.required:
            raise TrainingError(
                f"{name} failed: {reason}", hint="It is required; with required: false it would be dropped."
            ) from error
        if self._counts["candidates"]:
            raise TrainingError(
                f"{name} failed, and labels of it are written already: {reason}",
                hint="Run again, what it has scored is kept; or leave it out.",
            ) from error
        member.reason = reason
        if member.teacher is not None:
            member.teacher.close()
        message = f"{name} is DROPPED, the others share its weight: {reason}"
        warnings.warn(message, TeacherWarning, stacklevel=5)

    def _require_one(self) -> None:
        """Make sure that one is left that labels."""
        if not any(member.used for member in self.members):
            reasons = "; ".join(f"{member.config.label}: {member.reason}" for member in self.members)
            raise TrainingError(f"no teacher is left: {reasons}", hint="Check the names under teachers.")

    def _report(self, member: Member) -> TeacherReport:
        teacher, total = member.teacher, sum(one.config.weight for one in self.members if one.used)
        found = TeacherReport(
            kind=member.config.kind,
            name=getattr(teacher.config if teacher else member.config, "name", None),
            weight=member.config.weight,
            effective_weight=member.config.weight / total if member.used else 0.0,
            status="dropped" if member.reason else "used" if member.used else "unused",
            normalize=self.normalization(member),
            reason=member.reason,
        )
        if teacher is not None:
            found.fingerprint, found.unread = teacher.fingerprint, teacher.unread
            if teacher.store is not None:
                found.hits, found.misses = teacher.store.hits, teacher.store.misses
        return found
