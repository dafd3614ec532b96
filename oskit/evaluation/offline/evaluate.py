"""Encoders, BM25 and dense models beside each other, without a cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING

from oskit.archive.token_weights import Prune
from oskit.archive.tokenization import SAMPLED_TEXTS, Tokenization, spread, tokenizations
from oskit.errors import UsageError
from oskit.evaluation.offline.bm25 import Bm25Settings, rank_bm25
from oskit.evaluation.offline.dense import DenseEncoder, rank_dense
from oskit.evaluation.offline.description import describe_encoder
from oskit.evaluation.offline.exact_scores import check_chunks, themselves
from oskit.evaluation.offline.metrics import Run, judged_queries
from oskit.evaluation.offline.pruning_levels import prune_points, rank_pruned
from oskit.evaluation.offline.result import BM25, EvaluationReport, EvaluationRow, RunFigures, Step, now
from oskit.evaluation.offline.significance import RESAMPLES

if TYPE_CHECKING:
    from oskit.archive.text_encoder import TextEncoder
    from oskit.data.chunks import Chunking
    from oskit.data.collection import Collection

IN_CHUNKS = ", chunks"
"""Behind an encoder's name: its row by the best chunk of each document."""

_FLOAT_BYTES = 4


def evaluate(
    encoders: Mapping[str, Callable[[], TextEncoder]],
    collection: Collection,
    *,
    k: int = 1000,
    bm25: Bm25Settings | None = None,
    dense: Mapping[str, Callable[[], DenseEncoder]] | None = None,
    baseline: str | None = None,
    prune_levels: Sequence[Prune] = (),
    chunking: Chunking | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
    on_step: Step = lambda _: None,
) -> EvaluationReport:
    """Rank the corpus exactly in each way and measure the rankings.

    Args:
        encoders: For each name in the report what opens the encoder: one is in memory at a time.
        collection: Corpus, queries and relevance judgements.
        k: Depth of the rankings.
        bm25: Also rank by BM25 with these settings; the row is called ``BM25``.
        dense: Also rank with these dense models, by name.
        baseline: Name of the row that all others are compared with by paired bootstrap.
        prune_levels: Also measure each encoder with its documents pruned by these rules.
        chunking: Also measure each encoder with documents cut into chunks, of which the best counts; the row
            is called ``NAME, chunks``, beside that of the documents as far as the encoder reads them.
        resamples: Bootstrap samples.
        seed: Of the samples.
        on_step: Told what is being done.

    Raises:
        UsageError: There is nothing to evaluate, two rows have one name, no row is called ``baseline``, or
            chunks are longer than an encoder reads.
        DataError: The collection cannot be read, or judges no query.
        MissingDependencyError: bm25s or sentence-transformers is not installed.
    """
    dense = dense or {}
    in_chunks = [f"{name}{IN_CHUNKS}" for name in encoders if chunking is not None]
    baseline = _checked([*encoders, *in_chunks, *([BM25] if bm25 else []), *dense], baseline)
    job = _Evaluation(collection, k, prune_levels, chunking, on_step)
    rows = [row for name, open_it in encoders.items() for row in job.sparse(name, open_it)]
    if bm25 is not None:
        rows.append(job.bm25(bm25))
    rows += [job.dense(name, open_it) for name, open_it in dense.items()]
    if baseline is not None:
        on_step(f"comparing with {baseline}")
        base = next(row.figures for row in rows if row.name == baseline)
        for row in rows:
            if row.figures is not base:
                row.significance = [
                    row.figures.against(base, measure, resamples=resamples, seed=seed)
                    for measure in base.quality
                ]
    return EvaluationReport(
        created=now(),
        collection={
            "name": collection.name,
            "split": collection.split,
            "documents": job.documents,
            "queries": len(judged_queries(collection.qrels)),
        },
        k=k,
        rows=rows,
        baseline=baseline,
    )


def _checked(names: Sequence[str], baseline: str | None) -> str | None:
    """The baseline as a row is called, before anything is computed."""
    if not names:
        raise UsageError("there is nothing to evaluate", hint="Name an encoder, BM25 or a dense model.")
    if twice := [name for name in names if names.count(name) > 1]:
        raise UsageError(f"two rows would be called {twice[0]!r}", hint="Name each model once.")
    if baseline is None:
        return None
    found = [name for name in names if name == baseline or name == BM25 == baseline.upper()]
    if not found:
        raise UsageError(f"no row is called {baseline!r}", hint=f"There are {', '.join(names)}.")
    return found[0]


@dataclass
class _Evaluation:
    """What the rows have in common."""

    _collection: Collection
    _k: int
    _levels: Sequence[Prune]
    _chunking: Chunking | None
    _on_step: Step
    documents: int = 0
    _sample: list[str] = field(default_factory=list)

    def sparse(self, name: str, open_it: Callable[[], TextEncoder]) -> Iterator[EvaluationRow]:
        """The encoder's row, and that of documents in chunks."""
        self._on_step(f"{name}: loading")
        encoder = open_it()
        if self._chunking is not None:
            check_chunks(encoder, self._chunking)
        self._on_step(f"{name}: encoding and ranking")
        whole = self._ranked(name, encoder)
        yield replace(whole, tokenization=self._tokenization(encoder))
        if self._chunking is not None:
            self._on_step(f"{name}: encoding and ranking chunks")
            yield self._ranked(f"{name}{IN_CHUNKS}", encoder, self._chunking)

    def _ranked(self, name: str, encoder: TextEncoder, chunking: Chunking | None = None) -> EvaluationRow:
        whole, pruned = rank_pruned(encoder, self._collection, self._levels, k=self._k, chunking=chunking)
        self.documents = len(whole.document_ids)
        qrels, asked = self._collection.qrels, themselves(whole.run, self._collection, self._collection.qrels)
        return EvaluationRow(
            RunFigures.measure(name, whole.run, qrels, k=self._k, asked=asked),
            "sparse",
            describe_encoder(encoder),
            flops=whole.sparsity.flops,
            index_bytes=whole.sparsity.postings_bytes,
            sparsity=whole.sparsity,
            truncation=whole.truncation,
            pruning=prune_points(whole, pruned, qrels, k=self._k, asked=asked) if pruned else [],
            chunking=None if chunking is None else str(chunking),
            chunks=whole.chunks,
        )

    def _tokenization(self, encoder: TextEncoder) -> dict[str, Tokenization]:
        if not self._sample:
            chosen = set(spread(self.documents, SAMPLED_TEXTS))
            self._sample = [
                document.passage
                for position, document in enumerate(self._collection.documents())
                if position in chosen
            ]
        return tokenizations(encoder, self._sample, list(self._collection.queries.values()))

    def bm25(self, settings: Bm25Settings) -> EvaluationRow:
        self._on_step(f"{BM25}: indexing and ranking")
        found = rank_bm25(self._collection, settings, k=self._k)
        self.documents = len(found.document_ids)
        return EvaluationRow(
            self._measure(BM25, found.run),
            "bm25",
            {"name": BM25, "settings": asdict(found.settings), "guess": found.guess and asdict(found.guess)},
            flops=found.sparsity.flops,
            index_bytes=found.sparsity.postings_bytes,
            sparsity=found.sparsity,
        )

    def dense(self, name: str, open_it: Callable[[], DenseEncoder]) -> EvaluationRow:
        self._on_step(f"{name}: loading")
        model = open_it()
        self._on_step(f"{name}: encoding and ranking")
        found = rank_dense(model, self._collection, k=self._k)
        self.documents = found.documents
        return EvaluationRow(
            self._measure(name, found.run),
            "dense",
            {"name": name, "dimensions": found.dimensions},
            flops=float(found.dimensions),
            index_bytes=found.documents * found.dimensions * _FLOAT_BYTES,
        )

    def _measure(self, name: str, run: Run) -> RunFigures:
        asked = themselves(run, self._collection, self._collection.qrels)
        return RunFigures.measure(name, run, self._collection.qrels, k=self._k, asked=asked)
