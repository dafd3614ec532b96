"""How good the encoder is, before, in and after training: the figures of ``oskit evaluate``."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple


class Measure(NamedTuple):
    """One of the figures: its attribute, what people call it, its digits, its name in logs and on the Hub."""

    attribute: str
    label: str
    digits: str
    logged: str
    on_hub: str


MEASURES = (
    Measure("ndcg", "nDCG@10", ".4f", "ndcg@10", "dot_ndcg@10"),
    Measure("pooled", "nDCG@10, pooled", ".4f", "pooled_ndcg@10", "pooled_dot_ndcg@10"),
    Measure("mrr", "MRR@10", ".4f", "mrr@10", "dot_mrr@10"),
    Measure("recall", "recall@100", ".4f", "recall@100", "dot_recall@100"),
    Measure("flops", "FLOPS", ".2f", "flops", "avg_flops"),
    Measure("query_active", "active dimensions of a query", ".1f", "query_active", "query_active_dims"),
    Measure(
        "document_active", "active dimensions of a document", ".1f", "document_active", "corpus_active_dims"
    ),
)


@dataclass(frozen=True)
class Figures:
    """Quality and sparsity on one collection."""

    ndcg: float  # nDCG@10
    mrr: float  # MRR@10
    recall: float  # recall@100
    flops: float  # expected products of a query and a document
    query_active: float  # mean number of active dimensions of a query
    document_active: float  # the same of a document
    queries: int  # that are judged
    documents: int  # of the corpus
    per_query: dict[str, float] = field(repr=False, default_factory=dict)  # nDCG@10 of each
    # nDCG@10 of held-out queries by pooled judgements, which know more than their own answers; None where the
    # collection was judged by people
    pooled: float | None = None
    pooled_per_query: dict[str, float] = field(repr=False, default_factory=dict)

    @property
    def quality(self) -> float:
        """What encoders are compared by: nDCG@10 by the pooled judgements if there are some."""
        return self.ndcg if self.pooled is None else self.pooled

    @property
    def quality_name(self) -> str:
        """What people call it in a sentence."""
        return "nDCG@10" if self.pooled is None else "pooled nDCG@10"

    @property
    def quality_per_query(self) -> dict[str, float]:
        """The same of each query."""
        return self.per_query if self.pooled is None else self.pooled_per_query

    @property
    def quality_logged(self) -> str:
        """Its name in logs."""
        return "ndcg@10" if self.pooled is None else "pooled_ndcg@10"

    @property
    def measures(self) -> list[Measure]:
        """Those that there are."""
        return [measure for measure in MEASURES if getattr(self, measure.attribute) is not None]

    def to_dict(self) -> dict[str, Any]:
        """All attributes but the queries' own, by the names of the measures."""
        found = asdict(self)
        del found["per_query"], found["pooled_per_query"]
        names = {"ndcg": "nDCG@10", "mrr": "MRR@10", "recall": "R@100", "pooled": "nDCG@10 pooled"}
        return {names.get(name, name): value for name, value in found.items()}

    def logs(self) -> dict[str, float]:
        """As the trainer logs them."""
        return {measure.logged: getattr(self, measure.attribute) for measure in self.measures}

    def __str__(self) -> str:
        return (
            f"nDCG@10 {self.ndcg:.3f}, MRR@10 {self.mrr:.3f}, recall@100 {self.recall:.3f}, "
            f"FLOPS {self.flops:.1f}, {self.query_active:.0f} and {self.document_active:.0f} active "
            "dimensions of a query and a document"
        )
