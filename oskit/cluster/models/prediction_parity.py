"""Whether a deployed model predicts what its archive does."""

from __future__ import annotations

from dataclasses import dataclass

from opensearchpy import OpenSearch

from oskit.archive.agreement import (
    QUANTIZED_TOLERANCE,
    TOLERANCE,
    agree,
    is_quantized,
    largest_difference,
)
from oskit.archive.archive import Archive
from oskit.archive.text_encoder import KeyFormat, TokenWeights
from oskit.cluster.models.predict import predict
from oskit.cluster.models.registry import ModelInfo
from oskit.errors import MissingDependencyError, ModelError, PredictionMismatchError

TEXTS = (
    "How long does it take to get a building permit?",
    "Sparse retrieval",
    "The quick brown fox jumps over the lazy dog, twice: 2 * 42 = 84.",
    "Hur ansöker man om bygglov i kommunen?",
    "神经稀疏检索 with emoji 🦊 and naïve façades",
    "a long document, far beyond what the encoder reads " * 80,
)
"""Short, long (truncated), with punctuation, other scripts and characters outside the vocabulary."""


@dataclass(frozen=True)
class Expectation:
    """What a model must predict.

    Attributes:
        texts: For these texts,
        weights: these token weights.
        key: What names the tokens.
        quantized: Whether whole vectors are compared, by :data:`QUANTIZED_TOLERANCE`; else each weight.
        pruned: Whether the graph drops small weights: a token at the threshold may then be on one side only.
        partial: Whether the manifest's probes stand in for the archive, which hold the heaviest tokens only.
    """

    texts: tuple[str, ...]
    weights: tuple[TokenWeights, ...]
    key: KeyFormat
    quantized: bool
    pruned: bool
    partial: bool


def expectation(archive: Archive) -> Expectation | None:
    """Run the archive here, or take the probes that its manifest holds; None if neither is possible.

    A TorchScript archive runs only where torch is installed; its manifest's probes stand in elsewhere.

    Raises:
        ArchiveError: The archive does not run: the cluster would not run it either.
    """
    from oskit.archive.encoder import ArchiveEncoder

    manifest = archive.manifest
    quantized, pruned = is_quantized(manifest), manifest is not None and manifest.prune is not None
    try:
        encoder = ArchiveEncoder.open(archive)
    except MissingDependencyError:
        if manifest is None or not manifest.probes:
            return None
        return Expectation(
            tuple(probe.text for probe in manifest.probes),
            tuple(dict(probe.weights) for probe in manifest.probes),
            manifest.key_format,
            quantized,
            pruned,
            True,
        )
    key = encoder.vocabulary.key_format
    run = encoder.query_weights if archive.kind == "tokenizer" else encoder.document_weights
    return Expectation(TEXTS, tuple(run(TEXTS, key=key)), key, quantized, pruned, False)


def compare_predictions(client: OpenSearch, model: ModelInfo, expected: Expectation) -> float:
    """Largest difference of a weight between the cluster and ``expected``.

    Raises:
        PredictionMismatchError: It exceeds the tolerance; names text, token and both weights.
        ModelError: The model does not answer.
    """
    answers = predict(client, model, expected.texts, key=expected.key)
    source = "the manifest's probes" if expected.partial else "the archive"
    largest = 0.0
    for text, wanted, given in zip(expected.texts, expected.weights, answers, strict=True):
        if expected.partial:
            least = min(wanted.values(), default=0.0)
            given = {token: weight for token, weight in given.items() if token in wanted or weight > least}
        token, difference = largest_difference(wanted, given, pruned=expected.pruned)
        if not agree(wanted, given, quantized=expected.quantized, pruned=expected.pruned):
            allowed = (
                f"the vectors may be {QUANTIZED_TOLERANCE:.0%} apart"
                if expected.quantized
                else f"tolerance {TOLERANCE:g}"
            )
            raise PredictionMismatchError(
                f"The deployed model {model.model_id} does not predict what {source} does: for "
                f"{_shown(text)} the token {token!r} weighs {given.get(token, 0.0):.4f} on the cluster and "
                f"{wanted.get(token, 0.0):.4f} in {source} ({allowed})",
                hint="Export the encoder again, in the other format if that does not help",
            )
        largest = max(largest, difference)
    if not any(answers):
        raise ModelError(f"The deployed model {model.model_id} gives no token any weight")
    return largest


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:39]}…")
