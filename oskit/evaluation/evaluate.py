"""The figures of encoders beside each other, without a cluster."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from oskit.evaluation.describe import describe_encoder
from oskit.evaluation.reference import rank_exactly
from oskit.evaluation.result import EvaluationReport, RunFigures

if TYPE_CHECKING:
    from oskit.data.collection import Collection
    from oskit.encoder.types import TextEncoder


def evaluate(
    encoders: Mapping[str, Callable[[], TextEncoder]],
    collection: Collection,
    *,
    k: int = 1000,
    batch_size: int = 32,
    on_step: Callable[[str], object] = lambda _: None,
) -> EvaluationReport:
    """Rank the corpus by exact scores with each encoder and measure the rankings.

    Args:
        encoders: For each name in the report what opens the encoder: one is in memory at a time.
        collection: Corpus, queries and relevance judgements.
        k: Depth of the rankings.
        batch_size: Texts that an encoder computes at once.
        on_step: Told what is being done.

    Raises:
        DataError: The collection cannot be read, or judges no query.
    """
    runs, described, sparsity, documents = [], [], [], 0
    for name, open_it in encoders.items():
        on_step(f"{name}: loading")
        encoder = open_it()
        on_step(f"{name}: encoding and ranking")
        found = rank_exactly(encoder, collection, k=k, batch_size=batch_size)
        runs.append(RunFigures.measure(name, found.run, collection.qrels, k=k))
        described.append(describe_encoder(encoder))
        sparsity.append(found.sparsity)
        documents = len(found.document_ids)
    return EvaluationReport(
        created=datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        collection={
            "name": collection.name,
            "split": collection.split,
            "documents": documents,
            "queries": len(collection.queries),
        },
        k=k,
        runs=runs,
        encoders=described,
        sparsity=sparsity,
    )
