"""What a teacher is: something that scores a query's candidates."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from oskit.data.jsonl import read_objects
from oskit.data.values import clean_text, text_of
from oskit.errors import TrainingError
from oskit.training.data.arrow import CandidateBlock, candidate_blocks, candidate_rows, of_lists
from oskit.training.data.training_data import TrainingData
from oskit.training.teachers.vectors import Rows, Side, VectorTable

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from scipy.sparse import csr_matrix

    from oskit.training.recipe.teachers import TeacherConfig
    from oskit.training.teachers.vectors import Vectors

Progress = Callable[[str, int], object]
"""Told what is being done, and how many (texts, examples) were done since the last call."""

_EXAMPLES = 1024
"""Examples that are scored at once."""


class Teacher(ABC):
    """Scores the candidates of examples.

    Args:
        config: What the recipe says of it.

    Attributes:
        kind: As the recipe calls it.
        fingerprint: Digest of a model's files.
        number: Its place among the teachers, for the names of its files.
    """

    number: int = 0
    fingerprint: str | None = None

    def __init__(self, config: TeacherConfig) -> None:
        self.kind = config.kind
        self.config: Any = config
        texts = getattr(config, "texts", None)
        self._reads = None if texts is None else _other_texts(texts)
        self._unread: set[str] = set()
        self._found = False

    @property
    def hits(self) -> int:
        """Scores or vectors that the cache had."""
        return 0

    @property
    def misses(self) -> int:
        """Those that had to be computed."""
        return 0

    @property
    def unread(self) -> int:
        """Texts that it read as they are because ``texts`` lacks them."""
        return len(self._unread)

    @abstractmethod
    def scores(self, data: TrainingData, folder: Path, progress: Progress) -> Iterator[NDArray[np.float32]]:
        """Scores of all candidates of some examples, then of the next ones, and so on; NaN where unknown.

        Args:
            data: Examples and corpus.
            folder: For what need not stay in memory.
            progress: Told how far it is.
        """

    def release(self) -> None:  # noqa: B027 - most have nothing to let go of
        """Let go of the model; it is loaded again when it is needed."""

    def close(self) -> None:
        """Let go of everything."""
        self.release()

    def check_texts(self) -> None:
        """Refuse ``texts`` that have nothing to do with the data.

        Raises:
            TrainingError: Of all that was asked for it had none.
        """
        if self._reads is not None and self._unread and not self._found:
            raise TrainingError(
                f'{self.config.texts} has none of the texts of the data as its "text"',
                hint='It needs lines {"text": a query or a document as in the data, "read": what to read}.',
            )

    def texts(self, data: TrainingData, side: Side, rows: Rows) -> list[str]:
        """What it reads in place of the queries, or documents, of these rows."""
        table, name = (data.examples, "query") if side == "query" else (data.corpus, "text")
        found: list[str] = table.select_columns([name])[rows.tolist()][name]
        if self._reads is None:
            return found
        read = [self._reads.get(_same(text)) for text in found]
        self._unread.update(text for text, other in zip(found, read, strict=True) if other is None)
        self._found |= any(other is not None for other in read)
        return [text if other is None else other for text, other in zip(found, read, strict=True)]


class VectorTeacher(Teacher):
    """A teacher whose score is the inner product of a query's vector and a document's."""

    def __init__(self, config: TeacherConfig) -> None:
        super().__init__(config)
        self._tables: dict[Side, tuple[object, VectorTable]] = {}

    @abstractmethod
    def vectors(self, data: TrainingData, side: Side, rows: Rows) -> Vectors:
        """Vectors of the queries, or the documents, of these rows, ``[len(rows), width]``."""

    def table(
        self, data: TrainingData, side: Side, rows: Rows, folder: Path, progress: Progress
    ) -> VectorTable:
        """The table of one side, with these rows in it. What it has of the same data is not asked for again.

        Raises:
            DataError: It cannot be written.
        """
        of = data.examples if side == "query" else data.corpus
        known = self._tables.get(side)
        if known is None or known[0] is not of:
            known = of, VectorTable(folder / f"teacher-{self.number}-{side}", len(of))
            self._tables[side] = known
        what = f"{'queries' if side == 'query' else 'documents'}, {self.kind} teacher"
        known[1].fill(rows, lambda wanted: self.vectors(data, side, wanted), lambda n: progress(what, n))
        return known[1]

    def forget_tables(self) -> None:
        """Before their files are removed."""
        self._tables.clear()

    def scores(self, data: TrainingData, folder: Path, progress: Progress) -> Iterator[NDArray[np.float32]]:
        queries, documents = self.tables(data, folder, progress)
        for block in candidate_blocks(data.examples, _EXAMPLES):
            rows = np.arange(block.start, block.start + len(block.counts))
            asked = queries.take(rows)[np.repeat(np.arange(len(rows)), block.counts)]
            yield pair_scores(asked, documents.take(block.candidates))

    def tables(self, data: TrainingData, folder: Path, progress: Progress) -> tuple[VectorTable, VectorTable]:
        """Vectors of all queries and of all documents that are candidates."""
        queries = self.table(data, "query", np.arange(len(data.examples)), folder, progress)
        documents = self.table(data, "document", candidate_rows(data.examples, data.corpus), folder, progress)
        self.check_texts()
        return queries, documents


def pair_scores(queries: Vectors, documents: Vectors) -> NDArray[np.float32]:
    """Inner products of the rows of two matrices, ``[n]``."""
    if isinstance(queries, np.ndarray):
        return np.asarray(np.einsum("nd,nd->n", queries, documents), dtype=np.float32)
    product: csr_matrix = queries.multiply(documents)
    return np.asarray(product.sum(axis=1), dtype=np.float32).ravel()


class StoredScores(Teacher):
    """The scores that came with the data."""

    def scores(self, data: TrainingData, folder: Path, progress: Progress) -> Iterator[NDArray[np.float32]]:
        known = 0
        for block in candidate_blocks(data.examples, _EXAMPLES):
            found = _stored(block)
            if np.isinf(found).any():
                raise TrainingError("some scores of the data are infinite", hint="Correct the data.")
            known += int(np.isfinite(found).sum())
            yield found
            progress("stored scores", len(block.counts))
        if not known:
            raise TrainingError(
                "the data has no scores", hint="Name another teacher, or data with a column of scores."
            )


def _stored(block: CandidateBlock) -> NDArray[np.float32]:
    """Scores of the candidates, NaN where the data has none."""
    found = np.full(len(block.candidates), np.nan, dtype=np.float32)
    counts, scores = of_lists(block.table.column("scores"))
    found[np.repeat(counts == block.counts, block.counts)] = scores
    return found


def _other_texts(path: Path) -> Mapping[str, str]:
    """What to read instead, by text up to white space.

    Raises:
        DataError: The file cannot be read, or a line of it is wrong.
    """
    found: dict[str, str] = {}

    def use(record: dict[str, Any], _where: str) -> None:
        found[_same(text_of(record["text"], "text"))] = clean_text(text_of(record["read"], "read"))

    read_objects(path, use)
    return found


def _same(text: str) -> str:
    return " ".join(clean_text(text).split())
