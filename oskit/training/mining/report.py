"""What mining found."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class MiningReport:
    """What mining found.

    Attributes:
        examples: Examples that were looked at.
        queries: Distinct queries among them, up to case, punctuation and white space.
        documents: Size of the corpus.
        given: Candidates beside the positives that the data had, and that were kept.
        mined: Candidates that were found.
        random: Candidates drawn from the whole corpus because too few were left.
        filled: Examples that got such ones.
        short: Examples that got fewer than asked for: the corpus is too small.
        false_negatives: Documents that were left out because the teacher scores them like the positives.
        answers: Given candidates that were dropped, for they say what an answer to the query says.
        filtered: Whether the teacher looked at what was found.
        positive_score: The teacher's mean score of positives; None without a teacher.
        mined_score: Its mean score of mined candidates.
    """

    examples: int
    queries: int
    documents: int
    given: int = 0
    mined: int = 0
    random: int = 0
    filled: int = 0
    short: int = 0
    false_negatives: int = 0
    answers: int = 0
    filtered: bool = False
    positive_score: float | None = None
    mined_score: float | None = None

    def __str__(self) -> str:
        parts = [
            f"{self.mined:,} negatives mined for {self.examples:,} examples of {self.documents:,} documents"
        ]
        parts += [f"{self.given:,} given"] if self.given else []
        parts += [f"{self.answers:,} given ones dropped, which are answers"] if self.answers else []
        parts += [f"{self.random:,} random ones for {self.filled:,} examples"] if self.random else []
        parts += [f"{self.short:,} examples have too few"] if self.short else []
        if self.filtered:
            parts.append(f"{self.false_negatives:,} likely answers left out")
        else:
            parts.append("no teacher looked for likely answers among them")
        if self.positive_score is not None and self.mined_score is not None:
            parts.append(
                f"mean score {self.positive_score:.3f} of positives, {self.mined_score:.3f} of mined"
            )
        return "; ".join(parts)
