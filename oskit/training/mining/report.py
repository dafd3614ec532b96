"""What mining found."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class MiningReport:
    """What mining found."""

    examples: int  # that were looked at
    queries: int  # distinct ones among them, up to case, punctuation and white space
    documents: int  # size of the corpus
    given: int = 0  # candidates beside the positives that the data had, and that were kept
    mined: int = 0  # candidates that were found
    random: int = 0  # candidates drawn from the whole corpus because too few were left
    filled: int = 0  # examples that got such ones
    short: int = 0  # examples that got fewer than asked for: the corpus is too small
    false_negatives: int = 0  # documents left out because the teacher scores them like the positives
    answers: int = 0  # given candidates that were dropped, for they say what an answer to the query says
    filtered: bool = False  # whether the teacher looked at what was found
    positive_score: float | None = None  # the teacher's mean score of positives; None without a teacher
    mined_score: float | None = None  # its mean score of mined candidates

    def __str__(self) -> str:
        likely = f"{self.false_negatives:,} likely answers left out"
        found = f"{self.mined:,} negatives mined for {self.examples:,} examples"
        parts = [
            (True, f"{found} of {self.documents:,} documents"),
            (self.given, f"{self.given:,} given"),
            (self.answers, f"{self.answers:,} given ones dropped, which are answers"),
            (self.random, f"{self.random:,} random ones for {self.filled:,} examples"),
            (self.short, f"{self.short:,} examples have too few"),
            (True, likely if self.filtered else "no teacher looked for likely answers among them"),
        ]
        told = [text for there, text in parts if there]
        if self.positive_score is not None and self.mined_score is not None:
            means = f"{self.positive_score:.3f} of positives, {self.mined_score:.3f} of mined"
            told.append(f"mean score {means}")
        return "; ".join(told)
