"""What a plan is made of: what was seen of the data, of the machine, and of models on a trial of the data.

A trial is some queries of the data with a few hundred of its documents: small enough to be ranked by every
model that may be used, so that what a model is worth here is measured rather than guessed by its name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class DataSeen:
    """The training data.

    Attributes:
        queries: Distinct ones.
        documents: Distinct ones.
        candidates: Documents that a query brings beside its known positives, in the mean.
        scored: Share of the queries whose candidates have scores.
        language: That of the documents, as OpenSearch's analyzer is called; None where it is not known.
        bm25: nDCG@10 of BM25 on the trial.
        trial: How many queries and documents that was.
    """

    queries: int
    documents: int
    candidates: float
    scored: float
    language: str | None
    bm25: float
    trial: tuple[int, int]


@dataclass(frozen=True)
class StudentSeen:
    """An encoder that could be trained.

    Attributes:
        name: Folder or repository.
        parameters: How many.
        ndcg: nDCG@10 on the trial, as it was found; of one without a head that is 0.
        reads: Tokens that it encodes in a second.
        learns: Tokens that it trains on in a second.
        query_tokens: Of a query by its tokenizer, in the mean.
        document_tokens: Of a document, in the mean and at the 90th percentile.
        max_length: Tokens that it reads of a text.
        strange: Whether its vocabulary hardly knows the language.
    """

    name: str
    parameters: int
    ndcg: float
    reads: float
    learns: float
    query_tokens: float
    document_tokens: tuple[float, float]
    max_length: int
    strange: bool = False


@dataclass(frozen=True)
class TeacherSeen:
    """A dense model that could teach.

    Attributes:
        name: Folder or repository.
        ndcg: nDCG@10 on the trial.
        reads: Tokens that it embeds in a second.
    """

    name: str
    ndcg: float
    reads: float


@dataclass(frozen=True)
class MachineSeen:
    """Where it is trained.

    Attributes:
        device: By torch's name, without a number.
        name: What people call it: cores, or the GPU.
        minutes: How long all of it may take.
    """

    device: Literal["cpu", "cuda", "mps"]
    name: str
    minutes: float


@dataclass(frozen=True)
class Facts:
    """All of it."""

    data: DataSeen
    machine: MachineSeen
    students: tuple[StudentSeen, ...]
    teachers: tuple[TeacherSeen, ...]
