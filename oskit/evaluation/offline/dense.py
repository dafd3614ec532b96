"""A dense model as a baseline: exact search over all of its vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from oskit.errors import EncoderError
from oskit.evaluation.offline.exact_scores import TopK, query_chunks
from oskit.evaluation.offline.metrics import Run
from oskit.extras import require

if TYPE_CHECKING:
    from pathlib import Path

    from oskit.evaluation.offline.exact_scores import TextCollection

Vectors = npt.NDArray[np.float32]

_BLOCK_DOCUMENTS = 8192
DEFAULT_MAX_LENGTH = 512
_HIDDEN_SIZE = 1024
"""What is assumed of models that do not tell."""


class DenseEncoder(Protocol):
    """Vectors ``[n, dimensions]`` whose inner products are the scores."""

    def embed_queries(self, texts: Sequence[str]) -> Vectors: ...

    def embed_documents(self, texts: Sequence[str]) -> Vectors: ...


class DenseModel:
    """A sentence-transformers model; vectors have length 1 where it compares by cosine.

    Args:
        name: A folder, or a repository on the Hugging Face Hub.
        query_prompt: Put before each query; None for the model's own prompt.
        document_prompt: The same for documents.
        max_length: Tokens that it reads of a text; None for its own limit.
        device: Where torch puts it; None takes the best there is.
        precision: Of its weights, by torch's name; None leaves them as they are stored, ``auto`` has them in
            float32 and computes in bf16 on a GPU that has it.
        trust_remote_code: Run Python code that the model brings. Read it first.

    Raises:
        EncoderNotFoundError: There is no such folder, or the Hub does not have it.
        EncoderError: It cannot be loaded, or compares by something else than cosine or inner product.
        MissingDependencyError: sentence-transformers is not installed.
    """

    def __init__(
        self,
        name: str | Path,
        *,
        query_prompt: str | None = None,
        document_prompt: str | None = None,
        max_length: int | None = None,
        device: str | None = None,
        precision: str | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        require("a dense model", "export", ["sentence-transformers"])
        from sentence_transformers import SentenceTransformer

        from oskit.encoder.loader.failures import named_errors
        from oskit.encoder.loader.hub import HubOptions, local_or_fetched
        from oskit.encoder.loader.quiet import quiet_libraries
        from oskit.encoder.pipeline import stored_in

        folder = local_or_fetched(name, HubOptions(code=trust_remote_code))
        with named_errors(folder), quiet_libraries():
            self._model: Any = SentenceTransformer(
                str(folder),
                device=device,
                trust_remote_code=trust_remote_code,
                model_kwargs={} if precision is None else {"dtype": stored_in(precision)},
            )
        if max_length is not None:
            self._model.max_seq_length = max_length
        if self._model.similarity_fn_name not in ("cosine", "dot"):
            raise EncoderError(
                f"{name} compares by {self._model.similarity_fn_name}, which is no inner product",
                hint="Use a model that compares by cosine or dot.",
            )
        self._prompts = {"query": query_prompt, "document": document_prompt}
        self._automatic = precision == "auto"

    def embed_queries(self, texts: Sequence[str]) -> Vectors:
        """Vectors of queries, ``[n, dimensions]``."""
        return self._encode(self._model.encode_query, texts, "query")

    def embed_documents(self, texts: Sequence[str]) -> Vectors:
        """Vectors of documents, ``[n, dimensions]``."""
        return self._encode(self._model.encode_document, texts, "document")

    def _encode(self, encode: Any, texts: Sequence[str], side: str) -> Vectors:
        from oskit.encoder.pipeline import arithmetic, in_bulk

        if not len(texts):
            return np.empty((0, self._model.get_embedding_dimension() or 0), dtype=np.float32)
        weights = next(self._model.parameters())

        def run(batch: list[str]) -> Vectors:
            with arithmetic("auto" if self._automatic else "fp32", weights):
                vectors = encode(
                    batch,
                    prompt=self._prompts[side],
                    batch_size=len(batch),
                    show_progress_bar=False,
                    convert_to_tensor=True,
                    normalize_embeddings=self._model.similarity_fn_name == "cosine",
                )
            return np.asarray(vectors.float().cpu().numpy())

        return in_bulk(
            list(texts),
            run,
            texts=lambda text: text,
            max_length=self._model.max_seq_length or DEFAULT_MAX_LENGTH,
            hidden_size=hidden_size_of(self._model),
            device=weights.device,
        )


def hidden_size_of(model: Any) -> int:
    """Of a model of sentence-transformers, as far as it tells."""
    config = getattr(model, "config", None) or getattr(getattr(model[0], "auto_model", None), "config", None)
    return int(getattr(config, "hidden_size", None) or _HIDDEN_SIZE)


@dataclass(frozen=True)
class DenseRanking:
    """The corpus ranked for every query, best first, and the number of documents and dimensions."""

    run: Run
    documents: int
    dimensions: int


def rank_dense(model: DenseEncoder, collection: TextCollection, *, k: int = 1000) -> DenseRanking:
    """Rank the whole corpus for every query, in bounded memory."""
    query_ids = list(collection.queries)
    queries = model.embed_queries(list(collection.queries.values()))
    top = TopK(len(query_ids), k, above=-np.inf)
    document_ids: list[str] = []
    stream = iter(collection.documents())
    while block := list(islice(stream, _BLOCK_DOCUMENTS)):
        documents = model.embed_documents([document.passage for document in block])
        for rows in query_chunks(len(query_ids), len(block)):
            scores = (queries[rows] @ documents.T).astype(np.float64)
            top.update(rows, scores, len(document_ids))
        document_ids.extend(document.id for document in block)
    return DenseRanking(top.run(query_ids, document_ids), len(document_ids), int(queries.shape[1]))
