"""Proof that an archive computes what its encoder does: it is opened again, run and compared.

The reference is sentence-transformers' own ``encode_document`` and ``encode_query``: its tokenisation,
attention and pooling of all logits, of which nothing is shared with the graph in the archive, nor with
oskit's streaming head.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.sparse import csr_matrix
from sentence_transformers import SparseEncoder
from sentence_transformers.sparse_encoder.modules import SparseStaticEmbedding
from torch import nn
from torch.nn import functional

from exporters.parts import EncoderParts
from oskit.archive.batching import LOGITS_BYTES
from oskit.archive.encoder import ArchiveEncoder
from oskit.archive.idf import merged_idf
from oskit.archive.likeness import cosines
from oskit.archive.manifest import Parity, Retrieval
from oskit.archive.token_weights import Prune
from oskit.errors import ExportError, ParityError, first_line

if TYPE_CHECKING:
    from numpy.typing import NDArray

TOLERANCE = 1e-4
"""Largest difference of a weight: more than float32 arithmetic in another order makes, less than matters."""


@dataclass(frozen=True)
class Reference:
    """What the encoder computes for the texts, as the cluster should: special tokens zero, empty texts empty.

    Attributes:
        texts: The texts.
        documents: ``[texts, vocabulary]``.
        queries: The same of an inference-free encoder's queries, else None.
    """

    texts: tuple[str, ...]
    documents: NDArray[np.float32]
    queries: NDArray[np.float32] | None


def compute_reference(encoder: SparseEncoder, parts: EncoderParts, texts: Sequence[str]) -> Reference:
    """Run the encoder over the texts by sentence-transformers, as documents and as queries.

    Raises:
        ExportError: sentence-transformers cannot encode with it.
        ParityError: ``tokenizer.json`` does not give the ids that the encoder's tokenizer gives.
    """
    queries = None if parts.idf is None else reference_queries(encoder, parts, texts)
    return Reference(tuple(texts), reference_documents(encoder, parts, texts), queries)


def reference_documents(
    encoder: SparseEncoder, parts: EncoderParts, texts: Sequence[str]
) -> NDArray[np.float32]:
    """:attr:`Reference.documents` alone."""
    has_tokens = np.array([len(row) > parts.around for row in _token_ids(parts, texts)], np.float32)
    with _as_on_the_cluster(encoder, parts) as reference:
        weights = _dense(reference.encode_document, parts, texts)
    return weights * parts.vocabulary.weight_mask() * has_tokens[:, None]


def reference_queries(
    encoder: SparseEncoder, parts: EncoderParts, texts: Sequence[str]
) -> NDArray[np.float32]:
    """:attr:`Reference.queries` alone, of an inference-free encoder."""
    with _as_on_the_cluster(encoder, parts) as reference:
        weights = _dense(reference.encode_query, parts, texts)
    return _queries_on_the_cluster(weights, _token_ids(parts, texts), parts)


def compare_documents(
    reference: Reference, archive: ArchiveEncoder, *, prune: Prune | None, retrieval: Retrieval | None = None
) -> Parity:
    """Compare an encoder archive with the encoder.

    Args:
        reference: What the encoder computes.
        archive: The archive, opened.
        prune: The pruning in its graph.
        retrieval: Of a quantised archive; it is this that had to hold, so the weights may differ.

    Raises:
        ParityError: They differ by more than is allowed.
    """
    actual = archive.document_matrix(reference.texts).toarray()
    expected = reference.documents
    if prune is not None:
        expected = _prune_like(expected, actual, prune, TOLERANCE)
    return _judge(reference.texts, expected, actual, archive, retrieval)


def compare_queries(reference: Reference, archive: ArchiveEncoder) -> Parity:
    """Compare a tokenizer archive with the encoder's queries.

    Raises:
        ParityError: They differ by more than is allowed.
    """
    assert reference.queries is not None
    actual = archive.query_matrix(reference.texts)
    # Columns beyond the tokenizer's vocabulary, of padded embeddings, never weigh anything.
    actual.resize(reference.queries.shape)
    return _judge(reference.texts, reference.queries, actual.toarray(), archive, None)


def _token_ids(parts: EncoderParts, texts: Sequence[str]) -> list[list[int]]:
    own = parts.hf_tokenizer(list(texts), truncation=True, max_length=parts.max_length)["input_ids"]
    archived = [encoding.ids for encoding in parts.tokenizer.encode_batch(list(texts))]
    for text, expected, actual in zip(texts, own, archived, strict=True):
        if expected != actual:
            raise ParityError(
                f"tokenizer.json alone gives {len(actual)} tokens for {_short(text)}, the encoder's "
                f"{type(parts.hf_tokenizer).__name__} {len(expected)}, or others",
                hint="ML Commons has tokenizer.json only: use a tokenizer that needs no Python code.",
            )
    return archived


def _queries_on_the_cluster(
    queries: NDArray[np.float32], ids: Sequence[Sequence[int]], parts: EncoderParts
) -> NDArray[np.float32]:
    """The same with what the server does besides: special tokens count as length, keys are shared."""
    assert parts.idf is not None
    presence = np.zeros_like(queries)
    for row, tokens in zip(presence, ids, strict=True):
        row[list(tokens)] = 1
    merged = merged_idf(parts.idf, parts.vocabulary)
    shared = merged != parts.idf
    expected = queries * presence * parts.vocabulary.weight_mask()
    expected[:, shared] = presence[:, shared] * merged[shared]
    return np.asarray(expected, dtype=np.float32)


def _prune_like(
    expected: NDArray[np.float32], actual: NDArray[np.float32], rule: Prune, tolerance: float
) -> NDArray[np.float32]:
    """Prune the reference; a weight within the tolerance of the edge goes as it went in the archive."""
    if rule.type == "max_ratio":
        edge = expected.max(axis=1, keepdims=True) * np.float32(rule.ratio)
    elif rule.type == "top_k":
        k = min(int(rule.ratio), expected.shape[1])
        edge = -np.partition(-expected, k - 1, axis=1)[:, k - 1 : k]
    else:
        edge = np.full((len(expected), 1), rule.ratio, dtype=np.float32)
    kept = expected >= edge
    at_edge = np.abs(expected - edge) <= tolerance
    return np.where(np.where(at_edge, actual > 0, kept), expected, 0).astype(np.float32)


def _judge(
    texts: Sequence[str],
    expected: NDArray[np.float32],
    actual: NDArray[np.float32],
    archive: ArchiveEncoder,
    retrieval: Retrieval | None,
) -> Parity:
    # What float32 arithmetic in another order makes grows with the weight, and the sum of many is large.
    difference = np.abs(expected - actual) / np.maximum(1, np.abs(expected))
    alike = cosines(csr_matrix(expected), csr_matrix(actual))
    parity = Parity(
        texts=len(texts),
        max_difference=float(difference.max()),
        mean_cosine=round(float(alike.mean()), 6),
        min_cosine=round(float(alike.min()), 6),
        tolerance=TOLERANCE if retrieval is None else None,
        retrieval=retrieval,
        runtime=archive.runtime or "tokenizers",
    )
    what = f"{archive.archive.path.name} does not compute what the encoder does"
    if retrieval is None and not parity.max_difference <= TOLERANCE:
        row, column = divmod(int(difference.argmax()), difference.shape[1])
        token = archive.vocabulary.token_of(column)
        raise ParityError(
            f"{what}: for {_short(texts[row])} the token {token!r} weighs {actual[row, column]:.5f} instead "
            f"of {expected[row, column]:.5f} (allowed difference {TOLERANCE:g})",
            hint="Export the other format, and report the encoder's architecture.",
        )
    return parity


@contextmanager
def _as_on_the_cluster(encoder: SparseEncoder, parts: EncoderParts) -> Iterator[SparseEncoder]:
    """The encoder's modules in a plain ``SparseEncoder``, reading as much of a text as the server does.

    In float32, keeping all weights. The table of an inference-free encoder's queries is as wide as the
    vocabulary, so that it has every token id: by itself it is as wide as the tokenizer has tokens.
    """
    training = encoder.training
    exact = all(tensor.dtype == torch.float32 for tensor in encoder.parameters())
    modules: Any = OrderedDict((encoder if exact else deepcopy(encoder).float()).named_children())
    reference = SparseEncoder(modules=modules, device=str(encoder.device))
    reference.module_kwargs = encoder.module_kwargs
    tokenizers: dict[int, Any] = {
        id(module.tokenizer): module.tokenizer for module in reference.modules() if _tokenizes(module)
    }
    with ExitStack() as undo:
        undo.callback(encoder.train, training)
        reference.eval()
        for tokenizer in tokenizers.values():
            if tokenizer.pad_token is None:
                raise ExportError(
                    "the encoder's tokenizer has no padding token; sentence-transformers needs one",
                    hint="Set tokenizer.pad_token, if need be to the unknown token, and save it again.",
                )
            undo.callback(setattr, tokenizer, "model_max_length", tokenizer.model_max_length)
            tokenizer.model_max_length = parts.max_length
        for table in [module for module in reference.modules() if isinstance(module, SparseStaticEmbedding)]:
            undo.callback(_set_weights, table, table.weight)
            missing = parts.vocabulary.size - len(table.weight)
            _set_weights(table, nn.Parameter(functional.pad(table.weight.detach(), (0, missing))))
        yield reference


def _set_weights(table: SparseStaticEmbedding, weight: nn.Parameter) -> None:
    table.weight, table.num_dimensions = weight, len(weight)


def _tokenizes(module: Any) -> bool:
    return getattr(getattr(module, "tokenizer", None), "model_max_length", None) is not None


def _dense(encode: Callable[..., Any], parts: EncoderParts, texts: Sequence[str]) -> NDArray[np.float32]:
    batch_size = max(1, min(32, LOGITS_BYTES // (4 * parts.vocabulary.size * parts.max_length)))
    try:
        embeddings = encode(list(texts), batch_size=batch_size, show_progress_bar=False)
    except Exception as error:  # any, of whatever architecture
        raise ExportError(
            f"the encoder does not run: {first_line(error)}",
            hint="Call its encode_document() by itself: the traceback says where it fails.",
        ) from error
    return np.asarray(embeddings.to_dense().float().cpu().numpy())


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:40]}…")
