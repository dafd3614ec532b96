"""An inference-free encoder made of a symmetric one and a table of query weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sentence_transformers.sparse_encoder.modules import Router, SparseStaticEmbedding

from oskit.archive.idf import merged_idf
from oskit.encoder.anatomy import Anatomy
from oskit.errors import EncoderError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from oskit.encoder.model import NeuralSparseEncoder


def inference_free(
    encoder: NeuralSparseEncoder, idf: NDArray[np.float32], *, trainable: bool = False
) -> NeuralSparseEncoder:
    """An encoder whose documents are ``encoder``'s, and whose queries are a table of token weights.

    The two share the weights of the document side. Ids that the cluster gives one key get one weight, the
    largest of theirs, which is what the cluster will use.

    Args:
        encoder: Any encoder; its query side is not used.
        idf: Weight of each token, float32 ``[vocabulary.size]``, as :func:`oskit.corpus_idf` returns it.
        trainable: Whether training may change the table.

    Raises:
        EncoderError: The table is not one of this encoder's vocabulary, or has weights that are no finite
            numbers of at least 0.
    """
    size = encoder.vocabulary.size
    if idf.shape != (size,):
        raise EncoderError(
            f"the table of query weights has the shape {list(idf.shape)}, the encoder {size} tokens",
            hint="Compute it with this encoder's tokenizer: oskit idf --model.",
        )
    if not np.isfinite(idf).all() or (idf < 0).any():
        raise EncoderError("the table holds query weights that are negative or no finite numbers")
    weights = merged_idf(np.asarray(idf, dtype=np.float32), encoder.vocabulary)
    router = router_of(encoder.anatomy, weights, trainable=trainable)
    return encoder.with_modules([router])


def router_of(documents: Anatomy, weights: NDArray[np.float32], *, trainable: bool = False) -> Router:
    """Queries by a table, documents by an encoder.

    The table is as wide as sentence-transformers makes it when it loads it again, one weight a token. That is
    too few where the token ids have holes: a table with weights beyond is wider, and cannot be saved.

    Args:
        documents: The encoder.
        weights: Weight of each token, float32 ``[vocabulary]``.
        trainable: Whether training may change the table.
    """
    tokenizer: Any = documents.transformer.tokenizer
    width = len(tokenizer.get_vocab())
    if weights[width:].any():
        width = len(weights)
    weight = torch.from_numpy(weights[:width])
    queries = SparseStaticEmbedding(tokenizer=tokenizer, weight=weight, frozen=not trainable)
    modules: list[Any] = list(documents.document_modules)
    return Router.for_query_document(query_modules=[queries], document_modules=modules)
