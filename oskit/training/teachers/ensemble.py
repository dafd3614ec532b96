"""Several teachers as one: who scores the examples, and how their scores become labels."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from oskit.errors import DataError, TrainingError
from oskit.training.data.arrow import blocks_of, column_of
from oskit.training.recipe.teachers import LabelsPart, ModelTeacherConfig, Normalization, TeacherConfig
from oskit.training.teachers.models import CrossEncoderTeacher, DenseTeacher, SparseTeacher, Teacher
from oskit.training.teachers.score_cache import default_cache_folder

if TYPE_CHECKING:
    from datasets import Dataset
    from numpy.typing import NDArray

logger = logging.getLogger(__name__)

Status = Literal["used", "unused", "dropped"]

LABEL = "label"

_ROWS = 1024
"""Examples that are scored at once."""

Progress = Callable[[str, int], object]
"""Told the teacher's kind and how many examples it has scored since the last call."""


class TeacherWarning(UserWarning):
    """A teacher was dropped."""


@dataclass
class TeacherReport:
    """What became of one teacher.

    Attributes:
        kind: ``dense``, ``sparse`` or ``cross-encoder``.
        name: Its folder or repository.
        weight: As configured.
        effective_weight: Its share in the average now: the weights of those that are used sum to 1.
        status: ``unused``: its weight is 0. ``dropped``: it failed.
        reason: Why it was dropped.
        fingerprint: Digest of its files.
        hits: Scores or vectors that the cache had.
        misses: Those that were computed.
    """

    kind: str
    name: str | None
    weight: float
    effective_weight: float
    status: Status
    reason: str | None = None
    fingerprint: str | None = None
    hits: int = 0
    misses: int = 0

    def __str__(self) -> str:
        if self.status == "dropped":
            return f"{self.kind} teacher {self.name}: DROPPED, {self.reason}"
        if self.status == "unused":
            return f"{self.kind} teacher {self.name}: unused (weight 0)"
        return (
            f"{self.kind} teacher {self.name}: weight {self.effective_weight:.2f}; "
            f"{self.hits:,} from the cache, {self.misses:,} computed"
        )


@dataclass
class EnsembleReport:
    """What became of the teachers.

    Attributes:
        teachers: All that were named, used or not.
        scale: What normalised scores are multiplied by.
        normalize: How each teacher's scores are normalised.
    """

    teachers: list[TeacherReport]
    scale: float
    normalize: Normalization

    @property
    def dropped(self) -> list[TeacherReport]:
        """Teachers that failed."""
        return [teacher for teacher in self.teachers if teacher.status == "dropped"]

    def to_dict(self) -> dict[str, Any]:
        """All attributes, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        return "\n".join(map(str, self.teachers))


@dataclass
class _Member:
    """A teacher of the ensemble; ``reason`` says why it was dropped, if it was."""

    config: ModelTeacherConfig
    kind: str
    teacher: Teacher[Any, Any] | None = None
    reason: str | None = None

    @property
    def opened(self) -> Teacher[Any, Any]:
        assert self.teacher is not None
        return self.teacher


_Scored = tuple[_Member, "NDArray[np.float32]"]


class EnsembleTeacher:
    """Teachers whose scores are normalised for each query, averaged by weight, and scaled.

    For a query with the candidates ``d`` and teachers ``t`` of weights ``w_t``::

        label(d) = scale * sum_t w_t * norm_t(d) / sum_t w_t
        norm_t(d) = (s_t(d) - min s_t) / (max s_t - min s_t)        all 0 where the scores are all equal

    Min and max are taken over the query's candidates: teachers of different kinds score on different scales
    (cosines, inner products, logits). This is the heterogeneous ensemble of Geng et al., "Towards Competitive
    Search Relevance For Inference-Free Learned Sparse Retrievers" (arXiv 2411.04403), with equal weights in
    their code (``BiEncoderWrapper`` in opensearch-sparse-model-tuning-sample) and ``score_scale: 30`` in its
    configurations; there 1e-6 is added to the denominator, here equal scores are a case of their own.

    A teacher that cannot be loaded, or fails while it scores, is dropped with a :class:`TeacherWarning` and a
    log line, and the weights of the others are renormalised; :attr:`report` lists it. Models are loaded when
    the cache lacks something, one at a time. With several processes, label in one first: the others then
    find everything in the cache.

    Args:
        teachers: Who, and with which weights.
        labels: How their scores become labels.

    Raises:
        TrainingError: A required teacher is not there, or none is left.
        DataError: The cache cannot be written.
    """

    def __init__(self, teachers: Sequence[TeacherConfig], labels: LabelsPart = LabelsPart()) -> None:  # noqa: B008
        self.config = labels
        folder = default_cache_folder() if labels.cache_folder is None else Path(labels.cache_folder)
        self._members: list[_Member] = []
        kinds: dict[str, type[Teacher[Any, Any]]] = {
            one.kind: one for one in (DenseTeacher, SparseTeacher, CrossEncoderTeacher)
        }
        for part in teachers:
            if not isinstance(part, ModelTeacherConfig):
                raise TrainingError(f"{part.label} cannot label yet")
            member = _Member(part, part.kind)
            self._members.append(member)
            if part.weight > 0 or part.kind == "dense":
                make = partial(kinds[part.kind], part, folder.expanduser())
                member.teacher = self._try(member, make)
        self._require_one()

    @property
    def report(self) -> EnsembleReport:
        """Which teachers there are, which were dropped and why, and what the cache had."""
        return EnsembleReport(
            [self._report(member) for member in self._members], self.config.scale, self.config.normalize
        )

    def scores(self, examples: Dataset, *, progress: Progress | None = None) -> Dataset:
        """Label examples.

        Args:
            examples: ``query``, ``positive``, ``negatives``.
            progress: Told how far it is.

        Returns:
            The examples with ``label``: the score of the positive, then of each negative; a label that was
            there is replaced. An example without negatives has the label ``[0.0]`` under ``minmax``.

        Raises:
            TrainingError: A required teacher failed, or none is left.
        """
        offsets = _offsets(examples)
        raw = self._ask(lambda member: self._score_all(member, examples, progress))
        return _with_labels(examples, self._combine(raw, offsets), offsets)

    def score_matrix(self, queries: Sequence[str], texts: Sequence[str]) -> NDArray[np.float32]:
        """Labels of each query and each text, ``[len(queries), len(texts)]``: for in-batch negatives.

        Each row is normalised over all texts. A cross-encoder runs for every pair that the cache lacks.

        Raises:
            TrainingError: A required teacher failed, or none is left.
        """
        raw = self._ask(lambda member: _finite(member.opened.score_matrix(queries, texts)).ravel())
        offsets = np.arange(0, len(queries) * len(texts) + 1, max(1, len(texts)), dtype=np.int64)
        return self._combine(raw, offsets).reshape(len(queries), len(texts))

    @property
    def dense(self) -> DenseTeacher:
        """The dense teacher, for mining and for embeddings (``embed_queries``, ``embed_documents``).

        Raises:
            TrainingError: It is not used, or was dropped.
        """
        for member in self._active():
            if isinstance(member.teacher, DenseTeacher):
                return member.teacher
        raise TrainingError(
            "there is no dense teacher", hint="Give one: teachers: [{kind: dense, name: ...}]."
        )

    def release(self) -> None:
        """Let go of the models that are loaded, to make room for the student."""
        for member in self._active():
            member.opened.release()

    def _active(self) -> list[_Member]:
        return [member for member in self._members if member.teacher is not None and not member.reason]

    def _try(self, member: _Member, work: Callable[[], Any]) -> Any:
        """Do it; if it fails, drop the teacher and return None."""
        try:
            return work()
        except DataError:  # the cache cannot be written: no fault of the teacher
            raise
        except Exception as error:  # whatever a model's own code raises
            reason = " ".join(str(error).split()) or type(error).__name__
            self._drop(member, reason, error)
            return None

    def _drop(self, member: _Member, reason: str, error: Exception) -> None:
        name = f"the {member.kind} teacher {member.config.name}"
        if member.config.required:
            raise TrainingError(
                f"{name} failed: {reason}", hint="It is required; with required: false it would be dropped."
            ) from error
        member.reason = reason
        if member.teacher is not None:
            member.teacher.close()
        message = f"{name} is DROPPED, the others share its weight: {reason}"
        logger.warning("%s", message)
        warnings.warn(message, TeacherWarning, stacklevel=4)

    def _require_one(self) -> None:
        if self._active():
            return
        reasons = "; ".join(f"{m.kind} {m.config.name}: {m.reason}" for m in self._members if m.reason)
        raise TrainingError(f"no teacher is left: {reasons}", hint="Check the names under teachers.")

    def _report(self, member: _Member) -> TeacherReport:
        teacher, total = member.teacher, sum(m.config.weight for m in self._active())
        status: Status = "dropped" if member.reason else "unused" if teacher is None else "used"
        return TeacherReport(
            kind=member.kind,
            name=member.config.name,
            weight=member.config.weight,
            effective_weight=member.config.weight / total if status == "used" else 0.0,
            status=status,
            reason=member.reason,
            fingerprint=None if teacher is None else teacher.fingerprint,
            hits=0 if teacher is None else teacher.store.hits,
            misses=0 if teacher is None else teacher.store.misses,
        )

    def _score_all(
        self, member: _Member, examples: Dataset, progress: Progress | None
    ) -> NDArray[np.float32]:
        parts = [np.empty(0, dtype=np.float32)]
        for queries, texts, rows in _pairs(examples):
            parts.append(_finite(member.opened.pair_scores(queries, texts)))
            if progress is not None:
                progress(member.kind, rows)
        member.opened.release()  # one model in memory at a time
        return np.concatenate(parts)

    def _ask(self, score: Callable[[_Member], NDArray[np.float32]]) -> list[_Scored]:
        """The scores of each teacher that gives some; one that fails is dropped."""
        labelling = [member for member in self._active() if member.config.weight > 0]
        found = [(member, self._try(member, partial(score, member))) for member in labelling]
        self._require_one()
        return [(member, scores) for member, scores in found if scores is not None]

    def _combine(self, raw: Sequence[_Scored], offsets: NDArray[np.int64]) -> NDArray[np.float32]:
        total = sum(member.config.weight for member, _ in raw)
        labels = np.zeros(int(offsets[-1]), dtype=np.float64)
        for member, scores in raw:
            labels += (
                member.config.weight
                / total
                * normalize_scores(scores, offsets, member.config.normalize or self.config.normalize)
            )
        return (labels * self.config.scale).astype(np.float32)


def normalize_scores(
    scores: NDArray[np.float32], offsets: NDArray[np.int64], how: Normalization = "minmax"
) -> NDArray[np.float64]:
    """Scores of each query's candidates to [0, 1].

    Args:
        scores: Scores of all candidates, query after query, ``[n]``.
        offsets: Where each query's candidates start, and the end, ``[queries + 1]``; none is empty.
        how: ``minmax``, or ``none`` to leave them as they are.

    Returns:
        ``(s - min) / (max - min)``, 0 where all scores of a query are equal; ``[n]``.
    """
    wide = np.asarray(scores, dtype=np.float64)
    if how == "none" or not len(wide):
        return wide
    counts = np.diff(offsets)
    lowest = np.repeat(np.minimum.reduceat(wide, offsets[:-1]), counts)
    spread = np.repeat(np.maximum.reduceat(wide, offsets[:-1]), counts) - lowest
    normalized: NDArray[np.float64] = np.zeros_like(wide)
    np.divide(wide - lowest, spread, out=normalized, where=spread > 0)
    return normalized


def _finite(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    if not np.isfinite(scores).all():
        raise TrainingError("some of its scores are not finite", hint="Try precision: float32.")
    return scores


def _pairs(examples: Dataset) -> Iterator[tuple[list[str], list[str], int]]:
    """Queries and their candidates, aligned, and of how many examples they are."""
    for rows in blocks_of(examples, _ROWS):
        queries: list[str] = []
        texts: list[str] = []
        for query, positive, negatives in zip(
            rows["query"], rows["positive"], rows["negatives"], strict=True
        ):
            candidates = [positive, *(negatives or [])]
            queries += [query] * len(candidates)
            texts += candidates
        yield queries, texts, len(rows["query"])


def _offsets(examples: Dataset) -> NDArray[np.int64]:
    if not len(examples):
        raise TrainingError("there are no examples to label", hint="Check the training data.")
    counts = [1 + len(negatives or []) for negatives in column_of(examples, "negatives")]
    return np.cumsum([0, *counts], dtype=np.int64)


def _with_labels(examples: Dataset, labels: NDArray[np.float32], offsets: NDArray[np.int64]) -> Dataset:
    import pyarrow
    from datasets import List, Value

    if LABEL in examples.column_names:
        examples = examples.remove_columns(LABEL)
    column = pyarrow.LargeListArray.from_arrays(offsets, labels).cast(pyarrow.list_(pyarrow.float32()))
    return examples.add_column(LABEL, column, feature=List(Value("float32")))
