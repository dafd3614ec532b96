"""What a plan is made of.

Models are tried on a trial: some queries of the data with a few hundred of its documents, small enough to be
ranked by each, so that what a model is worth here is measured rather than believed by its name.
"""

from __future__ import annotations

from dataclasses import dataclass

LENGTHS = (64, 512)
"""Tokens that training reads of a text at least and at most: what it did not read in training an encoder
weighs wrongly, and texts that are shorter cost no more."""

LARGE = 50_000_000
"""Parameters from which training reads half of that at most: a batch's activations take gigabytes."""

TAUGHT = 128
"""Tokens that dense teachers read of a text: in their labels' time the encoder learns more."""


def longest_read(parameters: int, max_length: int) -> int:
    """Tokens that training reads of a text at most, by the encoder's size and what it can read."""
    return min(LENGTHS[1] // (2 if parameters > LARGE else 1), max_length)


@dataclass(frozen=True)
class StudentSeen:
    """An encoder that could be trained; tokens are those of its own tokenizer."""

    name: str
    parameters: int
    ndcg: float  # on the trial, as found, or with the head that `dense` tells of; 0 without a head
    reads: float  # tokens a second in encoding, and
    learns: float  # in training
    query_tokens: float  # in the mean
    document_tokens: tuple[float, float]  # in the mean, and at the 90th percentile
    max_length: int
    strange: bool = False  # whether its vocabulary hardly knows the language
    projected: bool = False  # whether it has no head of its own, but a projection that has to be fitted
    dense: bool = False  # whether that was fitted so that vectors compare as the dense model's do

    @property
    def directions(self) -> bool:
        """Whether it can search by a head whose tokens are names of directions."""
        return self.dense and self.ndcg > 0


@dataclass(frozen=True)
class TeacherSeen:
    """A dense model that could teach."""

    name: str
    ndcg: float  # on the trial
    reads: float  # tokens a second


@dataclass(frozen=True)
class Facts:
    """The data, the machine and the models."""

    queries: int
    documents: int
    candidates: float  # documents of a query beside its known positives, in the mean
    scored: float  # share of the queries whose candidates have scores
    language: str | None  # of the documents, as OpenSearch's analyzer is called
    bm25: float  # nDCG@10 on the trial
    machine: str  # what people call it
    minutes: float  # that all of it may take
    made: int = 0  # of the queries, those that were made of documents
    bfloat16: bool = False  # whether the CPU that trains multiplies it in hardware
    students: tuple[StudentSeen, ...] = ()
    teachers: tuple[TeacherSeen, ...] = ()
