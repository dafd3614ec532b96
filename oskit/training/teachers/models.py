"""Teachers: models that score queries against texts. Each keeps what it computed (``score_cache``)."""

from __future__ import annotations

import hashlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Generic, Literal, TypeVar

import numpy as np
import torch

from oskit.data.duplicates import digest_of
from oskit.encoder.loader.failures import out_of_memory
from oskit.encoder.loader.hub import HubOptions, local_or_fetched
from oskit.encoder.loader.quiet import quiet_libraries
from oskit.errors import TrainingError, UntrainedEncoderError
from oskit.evaluation.offline.dense import DenseModel
from oskit.training.recipe.teachers import (
    CrossEncoderConfig,
    DenseTeacherConfig,
    ModelTeacherConfig,
    SparseTeacherConfig,
)
from oskit.training.teachers.score_cache import ScoreStore

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from scipy.sparse import csr_matrix
    from sentence_transformers import CrossEncoder

    from oskit.encoder.model import NeuralSparseEncoder

logger = logging.getLogger(__name__)

Config = TypeVar("Config", bound=ModelTeacherConfig)
Model = TypeVar("Model")
Vectors = TypeVar("Vectors")
Result = TypeVar("Result")
Side = Literal["query", "document"]

_FORMAT = 1
"""Part of each identity: raise it when stored values mean something else."""

_HASHED_BYTES = 1 << 22


class Teacher(ABC, Generic[Config, Model]):
    """A model that scores queries against texts: found now, loaded when the cache lacks something.

    Args:
        config: Which model, and how it reads.
        cache: Folder where its scores are kept.

    Attributes:
        fingerprint: Digest of the model's files.
        store: What it has computed.

    Raises:
        EncoderError: There is no such model.
        DataError: The cache cannot be written.
    """

    kind: str
    _model: Model | None = None

    def __init__(self, config: Config, cache: Path) -> None:
        if not config.name:
            raise TrainingError(f"the {self.kind} teacher has no name", hint="Name a folder or a repository.")
        self.config = config
        self.name = config.name
        options = HubOptions(revision=config.revision, code=config.trust_remote_code)
        self.folder = local_or_fetched(config.name, options)
        self.fingerprint = fingerprint_of(self.folder)
        self.store = ScoreStore(cache, self._identity())

    @abstractmethod
    def pair_scores(self, queries: Sequence[str], texts: Sequence[str]) -> NDArray[np.float32]:
        """The score of ``queries[i]`` and ``texts[i]``, shape ``[n]``."""

    @abstractmethod
    def score_matrix(self, queries: Sequence[str], texts: Sequence[str]) -> NDArray[np.float32]:
        """The score of each query and each text, shape ``[len(queries), len(texts)]``."""

    @abstractmethod
    def _load(self) -> Model: ...

    def _loaded(self) -> Model:
        if self._model is None:
            self._model = self._load()
        return self._model

    def release(self) -> None:
        """Let go of the model; it is loaded again when it is needed."""
        self._model = None

    def close(self) -> None:
        """Let go of the model and close the cache."""
        self.release()
        self.store.close()

    def _identity(self) -> str:
        parts = [f"format {_FORMAT}", self.kind, self.fingerprint]
        parts += [f"max_length {self.config.max_length}", f"precision {self.config.precision}"]
        return "; ".join(parts)


class EmbeddingTeacher(Teacher[Config, Model], Generic[Config, Model, Vectors]):
    """A teacher whose score is the inner product of two vectors, which are what is kept."""

    def embed_queries(self, texts: Sequence[str]) -> Vectors:
        """Vectors of queries; their inner product with a document's vector is the score."""
        return self._embed(texts, "query")

    def embed_documents(self, texts: Sequence[str]) -> Vectors:
        """Vectors of documents, or of passages."""
        return self._embed(texts, "document")

    def _embed(self, texts: Sequence[str], side: Side) -> Vectors:
        keys = [digest_of(side, text) for text in texts]
        values = self.store.values(
            keys, lambda missing: self._compute([texts[position] for position in missing], side)
        )
        return self._decode(values)

    @abstractmethod
    def _compute(self, texts: list[str], side: Side) -> list[bytes]: ...

    @abstractmethod
    def _decode(self, values: Sequence[bytes]) -> Vectors: ...


class DenseTeacher(EmbeddingTeacher[DenseTeacherConfig, DenseModel, "NDArray[np.float32]"]):
    """A sentence-transformers model. Its score is its own similarity: cosine, or the inner product.

    Vectors are ``[n, dimensions]`` float32, of length 1 where the similarity is cosine.
    """

    kind = "dense"

    def pair_scores(self, queries: Sequence[str], texts: Sequence[str]) -> NDArray[np.float32]:
        vectors = self.embed_queries(queries), self.embed_documents(texts)
        return np.asarray(np.einsum("nd,nd->n", *vectors))

    def score_matrix(self, queries: Sequence[str], texts: Sequence[str]) -> NDArray[np.float32]:
        return np.asarray(self.embed_queries(queries) @ self.embed_documents(texts).T)

    def _identity(self) -> str:
        prompts = (
            f"query prompt {self.config.query_prompt!r}; document prompt {self.config.document_prompt!r}"
        )
        return f"{super()._identity()}; {prompts}"

    def _compute(self, texts: list[str], side: Side) -> list[bytes]:
        model = self._loaded()
        embed = model.embed_queries if side == "query" else model.embed_documents
        vectors = _with_memory(self.config.batch_size, lambda batch_size: embed(texts, batch_size=batch_size))
        return [row.tobytes() for row in vectors]

    def _decode(self, values: Sequence[bytes]) -> NDArray[np.float32]:
        if not values:
            return np.empty((0, 0), dtype=np.float32)
        return np.frombuffer(b"".join(values), dtype=np.float32).reshape(len(values), -1)

    def _load(self) -> DenseModel:
        config = self.config
        return DenseModel(
            self.folder,
            query_prompt=config.query_prompt,
            document_prompt=config.document_prompt,
            max_length=config.max_length,
            device=config.device,
            precision=config.precision,
            trust_remote_code=config.trust_remote_code,
        )


class SparseTeacher(EmbeddingTeacher[SparseTeacherConfig, "NeuralSparseEncoder", "csr_matrix"]):
    """A trained neural sparse encoder; its score is the cluster's: special tokens weigh nothing.

    Vectors are ``[n, vocabulary]``. A random projection is refused: it has nothing to teach.
    """

    kind = "sparse"

    def pair_scores(self, queries: Sequence[str], texts: Sequence[str]) -> NDArray[np.float32]:
        product = self.embed_queries(queries).multiply(self.embed_documents(texts))
        return np.asarray(product.sum(axis=1), dtype=np.float32).ravel()

    def score_matrix(self, queries: Sequence[str], texts: Sequence[str]) -> NDArray[np.float32]:
        product = self.embed_queries(queries) @ self.embed_documents(texts).T
        return np.asarray(product.toarray(), dtype=np.float32)

    def _compute(self, texts: list[str], side: Side) -> list[bytes]:
        model = self._loaded()
        encode = model.query_matrix if side == "query" else model.document_matrix
        from scipy.sparse import vstack

        def compute(batch_size: int) -> csr_matrix:
            starts = range(0, len(texts), batch_size)
            return vstack([encode(texts[start : start + batch_size]) for start in starts], format="csr")

        matrix = _with_memory(self.config.batch_size, compute)
        rows = zip(matrix.indptr[:-1], matrix.indptr[1:], strict=True)
        return [
            np.int32(matrix.shape[1]).tobytes()
            + matrix.indices[start:end].astype(np.int32).tobytes()
            + matrix.data[start:end].astype(np.float32).tobytes()
            for start, end in rows
        ]

    def _decode(self, values: Sequence[bytes]) -> csr_matrix:
        from scipy.sparse import csr_matrix

        width = int(np.frombuffer(values[0], dtype=np.int32, count=1)[0]) if values else 0
        counts = [(len(value) - 4) // 8 for value in values]
        indices = [np.frombuffer(v, np.int32, n, offset=4) for v, n in zip(values, counts, strict=True)]
        data = [
            np.frombuffer(v, np.float32, n, offset=4 + 4 * n) for v, n in zip(values, counts, strict=True)
        ]
        return csr_matrix(
            (
                np.concatenate([*data, np.empty(0, np.float32)]),
                np.concatenate([*indices, np.empty(0, np.int32)]),
                np.cumsum([0, *counts]),
            ),
            shape=(len(values), width),
        )

    def _load(self) -> NeuralSparseEncoder:
        from oskit.encoder.model import NeuralSparseEncoder

        config = self.config
        model = NeuralSparseEncoder.from_pretrained(
            self.folder,
            device=config.device,
            trust_remote_code=config.trust_remote_code,
            max_seq_length=config.max_length,
            fallback=False,
        )
        if model.is_untrained:
            raise UntrainedEncoderError(
                f"{self.name} has a random projection, which has nothing to teach",
                hint="Train it first: it can be the sparse teacher of a second stage then.",
            )
        return model.to(getattr(torch, config.precision))


class CrossEncoderTeacher(Teacher[CrossEncoderConfig, "CrossEncoder"]):
    """A sentence-transformers ``CrossEncoder`` with one output; its score is that output, without a sigmoid.

    What is kept is the score of each pair, so in-batch scores (``score_matrix``) cost a run for every pair.
    """

    kind = "cross-encoder"

    def pair_scores(self, queries: Sequence[str], texts: Sequence[str]) -> NDArray[np.float32]:
        pairs = list(zip(queries, texts, strict=True))
        keys = [digest_of("pair", query, text) for query, text in pairs]
        values = self.store.values(keys, lambda missing: self._compute([pairs[p] for p in missing]))
        return np.frombuffer(b"".join(values), dtype=np.float32)

    def score_matrix(self, queries: Sequence[str], texts: Sequence[str]) -> NDArray[np.float32]:
        every = [(query, text) for query in queries for text in texts]
        scores = self.pair_scores([query for query, _ in every], [text for _, text in every])
        return scores.reshape(len(queries), len(texts))

    def _compute(self, pairs: list[tuple[str, str]]) -> list[bytes]:
        model = self._loaded()
        scores = _with_memory(
            self.config.batch_size,
            lambda batch_size: model.predict(
                pairs, batch_size=batch_size, show_progress_bar=False, activation_fn=torch.nn.Identity()
            ),
        )
        return [np.float32(score).tobytes() for score in scores]

    def _load(self) -> CrossEncoder:
        from sentence_transformers import CrossEncoder

        config = self.config
        with quiet_libraries():
            model: CrossEncoder = CrossEncoder(
                str(self.folder),
                device=config.device,
                trust_remote_code=config.trust_remote_code,
                max_length=config.max_length,
                model_kwargs={"dtype": getattr(torch, config.precision)},
            )
        if model.num_labels != 1:
            raise TrainingError(
                f"{self.name} has {model.num_labels} outputs, a teacher has one score",
                hint="Use a cross-encoder that was trained to rank.",
            )
        return model


def fingerprint_of(folder: Path) -> str:
    """Digest of a model's files, names and contents, 32 hexadecimal digits.

    Files that no loader reads (hidden ones, texts for people) do not count.
    """
    state = hashlib.blake2b(digest_size=16)
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder)
        if any(part.startswith(".") for part in name.parts) or path.suffix.lower() == ".md":
            continue
        state.update(digest_of(name.as_posix()))
        with path.open("rb") as file:
            while chunk := file.read(_HASHED_BYTES):
                state.update(chunk)
    return state.hexdigest()


def _with_memory(batch_size: int, run: Callable[[int], Result]) -> Result:
    """Run with smaller and smaller batches until the memory suffices."""
    while True:
        try:
            return run(batch_size)
        except RuntimeError as error:
            if batch_size == 1 or out_of_memory(error, "a batch") is None:
                raise
            torch.cuda.empty_cache()
        batch_size //= 2
        logger.warning("out of memory: going on with batches of %d", batch_size)
