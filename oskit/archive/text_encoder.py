"""The interface that everything to the right of the encoder accepts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

    from oskit.archive.vocabulary import Vocabulary

TokenWeights = dict[str, float]
"""What one text becomes: the cluster's key of each token, and its weight (> 0)."""

Architecture = Literal["symmetric", "inference-free"]
"""Whether queries run through the encoder as well, or through a tokenizer and an IDF table."""

Activation = Literal["relu", "log1p_relu"]
"""From a logit to a weight, by sentence-transformers' names: ``relu`` is log1p(relu(x)) (Formal et al. 2021,
"SPLADE v2"; OpenSearch's v1 and v2), ``log1p_relu`` log1p(log1p(relu(x))) (Geng et al. 2024, "Towards
Competitive Search Relevance For Inference-Free Learned Sparse Retrievers"; v3)."""

Pooling = Literal["max", "sum"]
"""How the weights of a text's tokens become one."""

SERVER_MAX_LENGTH = 512
"""Tokens of a text that ML Commons gives a model at most, whatever the tokenizer says."""

KeyFormat = Literal["token", "id"]
"""Keys as token text (ML Commons' WORD format) or as token ids (TOKEN_ID)."""


@runtime_checkable
class TextEncoder(Protocol):
    """Anything that turns texts into the token weights that the cluster would compute."""

    @property
    def architecture(self) -> Architecture: ...

    @property
    def vocabulary(self) -> Vocabulary: ...

    def document_matrix(self, texts: Sequence[str]) -> csr_matrix:
        """Document vectors, shape ``[len(texts), vocabulary.size]``, float32, special tokens zero."""
        ...

    def query_matrix(self, texts: Sequence[str]) -> csr_matrix:
        """Query vectors, shape ``[len(texts), vocabulary.size]``, float32, special tokens zero."""
        ...

    def document_weights(self, texts: Sequence[str], *, key: KeyFormat = "token") -> list[TokenWeights]:
        """Token weights of each document, heaviest first."""
        ...

    def query_weights(self, texts: Sequence[str], *, key: KeyFormat = "token") -> list[TokenWeights]:
        """Token weights of each query, heaviest first."""
        ...
