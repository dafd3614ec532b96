"""What the loader tried, what it took and what it found there."""

from __future__ import annotations

import textwrap
from dataclasses import asdict, dataclass
from typing import Any, Literal

from oskit.archive.text_encoder import Activation, Architecture, Pooling

Tier = Literal["local", "hub", "base"]
Outcome = Literal["loaded", "missing", "unreachable", "skipped"]
Head = Literal["pretrained", "random"]

TIER_NAMES: dict[Tier, str] = {
    "local": "local folder",
    "hub": "Hugging Face Hub",
    "base": "base encoder with a random projection",
}


class UntrainedProjectionWarning(UserWarning):
    """The encoder's projection to the vocabulary is random: it must be trained before retrieval."""


class CachedCopyWarning(UserWarning):
    """A copy in the cache is used, because the Hub did not give what was asked for."""


@dataclass(frozen=True)
class LoadAttempt:
    """One place where the loader looked.

    Attributes:
        tier: Which of the three tiers this attempt belongs to.
        location: The folder, or the repository with its endpoint.
        outcome: ``loaded``; ``missing`` (nothing of that name is there); ``unreachable`` (no answer, or
            offline without a cached copy); ``skipped`` (cannot be a name of that kind). What is there and
            cannot be used is an error.
        reason: One line: what was found or why not.
    """

    tier: Tier
    location: str
    outcome: Outcome
    reason: str

    def __str__(self) -> str:
        return f"{self.location}: {self.reason}"


@dataclass(frozen=True)
class LoadReport:
    """How an encoder was found, and what it is.

    Attributes:
        name: The name or path that was asked for.
        source: The folder or the repository.
        folder: The folder on this machine that was read.
        revision: The commit of a Hub snapshot, else None.
        layout: How the folder is laid out; see docs/loading.md.
        head: Whether the projection to the vocabulary was read or is random.
        activation: Of the pooling, by the names of sentence-transformers.
        model_type: The transformers architecture, for instance ``bert``.
        vocabulary_size: Width of the output.
        parameters: Parameters of all modules; tied ones count once.
        bytes: What the parameters take in memory.
        max_length: Tokens that a text is truncated to, special tokens included.
        attempts: Every place that was looked at, in order.
        notes: What someone should know before using it, one line each.
    """

    name: str
    tier: Tier
    source: str
    folder: str
    revision: str | None
    layout: str
    head: Head
    architecture: Architecture
    activation: Activation
    pooling: Pooling
    model_type: str
    vocabulary_size: int
    hidden_size: int
    layers: int
    parameters: int
    bytes: int
    max_length: int
    attempts: tuple[LoadAttempt, ...]
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as JSON has them."""
        return asdict(self)


def untrained_message(report: LoadReport, missing: str) -> str:
    """The warning about a random projection, in a box that nobody overlooks."""
    tried = [f"- {attempt}" for attempt in report.attempts if attempt.outcome != "loaded"]
    reasons = [f"Looked for {report.name!r}:", *tried] if tried else []
    lines = [
        "UNTRAINED ENCODER: the projection to the vocabulary is RANDOM",
        "",
        *(line for text in (f"{report.source} lacks {missing}.", *reasons) for line in _wrap(text)),
        "",
        *_wrap("Its token weights mean nothing yet. Train it before you use it for retrieval;"),
        *_wrap("export and deploy refuse it unless they are told otherwise."),
    ]
    width = max(map(len, lines))
    edge = "!" * (width + 6)
    body = [f"!! {line:<{width}} !!" for line in lines]
    return "\n".join(["", edge, *body, edge])


def _wrap(text: str) -> list[str]:
    return textwrap.wrap(text, 92, subsequent_indent="  ", break_long_words=False) or [""]
