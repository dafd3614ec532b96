"""An inference-free encoder made of a symmetric one and a table of query weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from sentence_transformers.sparse_encoder.modules import Router

from oskit.archive.idf import merged_idf
from oskit.encoder.loader.modules import query_table
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
    documents: list[Any] = list(encoder.document_modules)
    merged = merged_idf(np.asarray(idf, dtype=np.float32), encoder.vocabulary)
    queries = query_table(encoder.document_transformer.tokenizer, merged, frozen=not trainable)
    router = Router.for_query_document(query_modules=[queries], document_modules=documents)
    return encoder.with_modules([router])
