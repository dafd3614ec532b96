"""What a teacher is: something that scores a query's candidates; and those that need no model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from oskit.data.jsonl import read_objects
from oskit.data.values import clean_text, text_of
from oskit.errors import TrainingError
from oskit.evaluation.offline.bm25 import Bm25Index, Bm25Settings
from oskit.training.data.arrow import CandidateBlock, candidate_blocks, candidate_rows, of_lists
from oskit.training.data.training_data import TrainingData

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

    from oskit.training.recipe.teachers import Bm25TeacherConfig, TeacherConfig
    from oskit.training.teachers.score_cache import ScoreStore

    Vectors: TypeAlias = NDArray[np.float32] | csr_matrix

Rows: TypeAlias = NDArray[np.int64]
Side = Literal["query", "document"]
Progress = Callable[[str, int], object]
"""Told what is being done, and how many (texts, examples) were done since the last call."""


def tell_nobody(_what: str, _count: int) -> None:
    """Progress without a listener."""


AT_ONCE = 8192
"""Texts whose vectors are asked for together: a few windows of the encoder."""


class Teacher(ABC):
    """Scores the candidates of examples."""

    fingerprint: str | None = None  # digest of a model's files
    store: ScoreStore | None = None  # what a model has computed

    def __init__(self, config: TeacherConfig) -> None:
        self.kind = config.kind
        self.config: Any = config
        texts = getattr(config, "texts", None)
        self._reads = None if texts is None else _other_texts(texts)
        self._unread: set[str] = set()
        self._found = False

    @property
    def unread(self) -> int:
        """Texts that it read as they are because ``texts`` lacks them."""
        return len(self._unread)

    @abstractmethod
    def compute(self, data: TrainingData, progress: Progress) -> None:
        """All that the scores of the data's candidates are made of, before any of them is used."""

    @abstractmethod
    def scores(self, data: TrainingData, block: CandidateBlock) -> NDArray[np.float32]:
        """The scores of a block's candidates, once they are computed; NaN where unknown."""

    def release(self) -> None:  # noqa: B027 - most have nothing to let go of
        """Let go of the model; it is loaded again when it is needed."""

    def close(self) -> None:
        """Let go of everything."""
        self.release()
        if self.store is not None:
            self.store.close()

    def check_texts(self) -> None:
        """Refuse ``texts`` that have nothing to do with the data: of all that was asked for it had none."""
        if self._unread and not self._found:
            raise TrainingError(
                f'{self.config.texts} has none of the texts of the data as its "text"',
                hint='It needs lines {"text": a query or a document as in the data, "read": what to read}.',
            )

    def texts(self, data: TrainingData, side: Side, rows: Rows) -> list[str]:
        """What it reads in place of the queries, or documents, of these rows."""
        table, name = (data.examples, "query") if side == "query" else (data.corpus, "text")
        found: list[str] = table.select_columns([name])[rows][name]
        if self._reads is None:
            return found
        read = [self._reads.get(_same(text)) for text in found]
        self._unread.update(text for text, other in zip(found, read, strict=True) if other is None)
        self._found |= any(other is not None for other in read)
        return [text if other is None else other for text, other in zip(found, read, strict=True)]


class VectorTeacher(Teacher):
    """A teacher whose score is the inner product of a query's vector and a document's."""

    @abstractmethod
    def vectors(self, data: TrainingData, side: Side, rows: Rows) -> Vectors:
        """Vectors of the queries, or the documents, of these rows, ``[len(rows), width]``."""

    def blocks(self, data: TrainingData, progress: Progress) -> Iterator[tuple[Side, Rows, Vectors]]:
        """The vectors of all queries, then of all documents that are candidates, some rows at a time."""
        sides: dict[Side, Rows] = {
            "query": np.arange(len(data.examples)),
            "document": candidate_rows(data.examples, data.corpus),
        }
        for side, rows in sides.items():
            for start in range(0, len(rows), AT_ONCE):
                part = rows[start : start + AT_ONCE]
                yield side, part, self.vectors(data, side, part)
                progress(f"{'queries' if side == 'query' else 'documents'}, {self.kind} teacher", len(part))
        self.check_texts()

    def compute(self, data: TrainingData, progress: Progress) -> None:
        for _ in self.blocks(data, progress):
            pass

    def scores(self, data: TrainingData, block: CandidateBlock) -> NDArray[np.float32]:
        return self.pair_scores(data, block.owners, block.candidates)

    def pair_scores(
        self, data: TrainingData, queries: Rows, documents: Rows, progress: Progress = tell_nobody
    ) -> NDArray[np.float32]:
        """The score of each query with the document at its place, ``[n]``."""
        found = np.empty(len(queries), dtype=np.float32)
        for start in range(0, len(queries), AT_ONCE):
            part = slice(start, start + AT_ONCE)
            asked, by_query = np.unique(queries[part], return_inverse=True)
            rows, by_document = np.unique(documents[part], return_inverse=True)
            ours = self.vectors(data, "query", asked)[by_query]
            theirs = self.vectors(data, "document", rows)[by_document]
            if isinstance(ours, np.ndarray):
                found[part] = np.einsum("nd,nd->n", ours, theirs)
            else:
                found[part] = np.asarray(ours.multiply(theirs).sum(axis=1)).ravel()
            progress("scoring candidates", len(by_query))
        return found


class Bm25Teacher(VectorTeacher):
    """BM25 over the training corpus. Its score is an inner product too, of the terms of a query and their
    weights in a document; it keeps no cache, for these depend on the whole corpus."""

    config: Bm25TeacherConfig

    def __init__(self, config: Bm25TeacherConfig) -> None:
        super().__init__(config)
        self._settings = Bm25Settings(language=config.language, max_words=config.max_length)
        self._index: tuple[object, Bm25Index, csr_matrix] | None = None

    def vectors(self, data: TrainingData, side: Side, rows: Rows) -> csr_matrix:
        if self._index is None or self._index[0] is not data.corpus:
            every = np.arange(len(data.corpus))
            parts = (every[start : start + AT_ONCE] for start in range(0, len(every), AT_ONCE))
            texts = chain.from_iterable(self.texts(data, "document", part) for part in parts)
            index = Bm25Index(texts, self._settings)
            self._index = data.corpus, index, index.document_matrix()
        _, index, documents = self._index
        return index.query_matrix(self.texts(data, "query", rows)) if side == "query" else documents[rows]

    def release(self) -> None:
        self._index = None


class StoredScores(Teacher):
    """The scores that came with the data."""

    def compute(self, data: TrainingData, progress: Progress) -> None:
        known = 0
        for block in candidate_blocks(data.examples):
            found = self.scores(data, block)
            if np.isinf(found).any():
                raise TrainingError("some scores of the data are infinite", hint="Correct the data.")
            known += int(np.isfinite(found).sum())
            progress("stored scores", len(block.counts))
        if not known:
            raise TrainingError(
                "the data has no scores", hint="Name another teacher, or data with a column of scores."
            )

    def scores(self, data: TrainingData, block: CandidateBlock) -> NDArray[np.float32]:
        found = np.full(len(block.candidates), np.nan, dtype=np.float32)
        counts, scores = of_lists(block.table.column("scores"))
        found[np.repeat(counts == block.counts, block.counts)] = scores
        return found


def _other_texts(path: Path) -> dict[str, str]:
    """What to read instead, by text up to white space; DataError where a line of the file is wrong."""
    found: dict[str, str] = {}

    def use(record: dict[str, Any], _where: str) -> None:
        found[_same(text_of(record["text"], "text"))] = clean_text(text_of(record["read"], "read"))

    read_objects(path, use)
    return found


def _same(text: str) -> str:
    return " ".join(clean_text(text).split())
