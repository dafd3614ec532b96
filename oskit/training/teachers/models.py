"""Teachers that are models. Each keeps what it computed (``score_cache``)."""

from __future__ import annotations

import hashlib
import os
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import util

from oskit.data.duplicates import digest_of
from oskit.encoder.loader.hub import HubOptions, local_or_fetched
from oskit.encoder.loader.quiet import quiet_libraries
from oskit.encoder.pipeline import arithmetic, has_bf16, in_bulk, stored_in
from oskit.errors import TrainingError, UntrainedEncoderError
from oskit.evaluation.offline.dense import DEFAULT_MAX_LENGTH, DenseModel, hidden_size_of
from oskit.training.data.arrow import CandidateBlock, candidate_blocks
from oskit.training.data.training_data import TrainingData
from oskit.training.ranks import processes_here
from oskit.training.recipe.teachers import DenseTeacherConfig, ModelTeacherConfig
from oskit.training.teachers.score_cache import ScoreStore
from oskit.training.teachers.teacher import Progress, Rows, Side, Teacher, VectorTeacher

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix
    from sentence_transformers import CrossEncoder

    from oskit.archive.text_encoder import Activation
    from oskit.encoder.model import NeuralSparseEncoder
    from oskit.training.teachers.teacher import Vectors

T = TypeVar("T")

_FORMAT = 2
"""Part of each identity: raise it when stored values mean something else."""

_EXAMPLES = 256
"""Examples whose pairs are read at once by a cross-encoder."""

_ENTRY = np.dtype([("id", np.int32), ("weight", np.float32)])


class ModelTeacher(Teacher):
    """A model: found now, loaded when the cache, which is a folder, lacks something.

    Raises:
        EncoderError: There is no such model.
        DataError: The cache, or the file of ``texts``, cannot be read or written.
    """

    config: ModelTeacherConfig
    store: ScoreStore

    def __init__(self, config: ModelTeacherConfig, cache: Path) -> None:
        super().__init__(config)
        self._models: list[Any] = []
        options = HubOptions(revision=config.revision, code=config.trust_remote_code)
        self.folder = local_or_fetched(config.name, options)
        self.fingerprint = fingerprint_of(self.folder)
        self.store = ScoreStore(cache, self._identity())

    def release(self) -> None:
        self._models = []

    @abstractmethod
    def _load(self, device: str) -> Any: ...

    def _loaded(self) -> list[Any]:
        """The model, once on each device."""
        if not self._models:
            self._models = [self._load(device) for device in devices_of(self.config.device)]
        return self._models

    def _values(
        self, keys: list[bytes], items: list[T], compute: Callable[[Any, list[T]], list[bytes]]
    ) -> list[bytes]:
        """The values of all items: those that are kept, and the others by all devices at once."""

        def missing(places: list[int]) -> list[bytes]:
            models, asked = self._loaded(), [items[place] for place in places]
            if len(models) == 1:
                with all_cores():
                    return compute(models[0], asked)
            parts = [asked[number :: len(models)] for number in range(len(models))]
            found: list[bytes] = [b""] * len(asked)
            with ThreadPoolExecutor(len(models), thread_name_prefix="oskit-teacher") as pool:
                for number, values in enumerate(pool.map(compute, models, parts)):
                    found[number :: len(models)] = values
            return found

        return self.store.values(keys, missing)

    def _identity(self) -> str:
        """All that its values depend on, but the texts."""
        precision: str = self.config.precision
        if precision == "auto":
            device = torch.device(devices_of(self.config.device)[0])
            precision = "bf16 by autocast" if has_bf16(device) else "float32"
        return (
            f"format {_FORMAT}; {self._computes}; {self.fingerprint}; max_length {self.config.max_length}; "
            f"precision {precision}"
        )

    @property
    def _computes(self) -> str:
        return self.kind


class EmbeddingTeacher(ModelTeacher, VectorTeacher):
    """A model whose vectors are what is kept."""

    def compute(self, data: TrainingData, progress: Progress) -> None:
        super().compute(data, progress)
        self.release()  # one model in memory at a time

    def vectors(self, data: TrainingData, side: Side, rows: Rows) -> Vectors:
        texts = self.texts(data, side, rows)
        keys = [digest_of(side, text) for text in texts]
        values = self._values(keys, texts, lambda model, part: self._compute(model, part, side))
        vectors = self._decode(values)
        if not np.isfinite(vectors if isinstance(vectors, np.ndarray) else vectors.data).all():
            raise TrainingError("some of its vectors are not finite", hint="Try precision: float32.")
        return vectors

    @abstractmethod
    def _compute(self, model: Any, texts: list[str], side: Side) -> list[bytes]: ...

    @abstractmethod
    def _decode(self, values: Sequence[bytes]) -> Vectors: ...


class DenseTeacher(EmbeddingTeacher):
    """A sentence-transformers model. Its score is its own similarity: cosine (of vectors ``[n, dimensions]``
    that have length 1), or the inner product."""

    config: DenseTeacherConfig

    def _identity(self) -> str:
        query, document = self.config.query_prompt, self.config.document_prompt
        return f"{super()._identity()}; query prompt {query!r}; document prompt {document!r}"

    def _compute(self, model: DenseModel, texts: list[str], side: Side) -> list[bytes]:
        vectors = model.embed_queries(texts) if side == "query" else model.embed_documents(texts)
        return [row.tobytes() for row in vectors]

    def _decode(self, values: Sequence[bytes]) -> NDArray[np.float32]:
        if not values:
            return np.empty((0, 0), dtype=np.float32)
        return np.frombuffer(bytearray().join(values), dtype=np.float32).reshape(len(values), -1)

    def _load(self, device: str) -> DenseModel:
        given = {"query_prompt", "document_prompt", "max_length", "precision", "trust_remote_code"}
        return DenseModel(self.folder, device=device, **self.config.model_dump(include=given))


class SparseTeacher(EmbeddingTeacher):
    """A trained neural sparse encoder; its score is the cluster's: special tokens weigh nothing.

    Vectors are ``[n, vocabulary]``. A random projection is refused: it has nothing to teach.
    """

    def __init__(
        self, config: ModelTeacherConfig, cache: Path, *, activation: Activation | None = None
    ) -> None:
        self._activation = activation
        super().__init__(config, cache)

    @property
    def _computes(self) -> str:
        # An encoder that teaches itself gives the vectors that it gives as anybody's teacher.
        return f"sparse entries, {self._activation}"

    def _compute(self, model: NeuralSparseEncoder, texts: list[str], side: Side) -> list[bytes]:
        matrix = model.query_matrix(texts) if side == "query" else model.document_matrix(texts)
        entries = np.empty(matrix.nnz, dtype=_ENTRY)
        entries["id"], entries["weight"] = matrix.indices, matrix.data
        width = np.int32(matrix.shape[1]).tobytes()
        return [width + entries[start:end].tobytes() for start, end in pairwise(matrix.indptr)]

    def _decode(self, values: Sequence[bytes]) -> csr_matrix:
        from scipy.sparse import csr_matrix

        width = int(np.frombuffer(values[0], dtype=np.int32, count=1)[0]) if values else 0
        ends = np.cumsum([0, *((len(value) - 4) // _ENTRY.itemsize for value in values)])
        entries = np.frombuffer(b"".join(value[4:] for value in values), dtype=_ENTRY)
        shape = len(values), width
        return csr_matrix((entries["weight"].copy(), entries["id"].copy(), ends), shape=shape)

    def _load(self, device: str) -> NeuralSparseEncoder:
        from oskit.encoder.model import NeuralSparseEncoder

        precision = self.config.precision
        model = NeuralSparseEncoder.from_pretrained(
            self.folder,
            device=device,
            trust_remote_code=self.config.trust_remote_code,
            activation=self._activation,
            max_seq_length=self.config.max_length,
            fallback=False,
        )
        if model.is_untrained:
            raise UntrainedEncoderError(
                f"{self.config.name} has a random projection, which has nothing to teach",
                hint="Train it first: it can be the sparse teacher of a second stage then.",
            )
        model.precision = "auto" if precision == "auto" else "fp32"
        return model.to(stored_in(precision))


class CrossEncoderTeacher(ModelTeacher):
    """A sentence-transformers ``CrossEncoder`` with one output, which is its score (no sigmoid)."""

    def compute(self, data: TrainingData, progress: Progress) -> None:
        for block in candidate_blocks(data.examples, _EXAMPLES):
            self.scores(data, block)
            progress(f"examples, {self.kind} teacher", len(block.counts))
        self.check_texts()
        self.release()

    def scores(self, data: TrainingData, block: CandidateBlock) -> NDArray[np.float32]:
        asked = self.texts(data, "query", block.owners)
        pairs = list(zip(asked, self.texts(data, "document", block.candidates), strict=True))
        values = self._values([digest_of("pair", *pair) for pair in pairs], pairs, self._compute)
        scores = np.frombuffer(b"".join(values), dtype=np.float32)
        if not np.isfinite(scores).all():
            raise TrainingError("some of its scores are not finite", hint="Try precision: float32.")
        return scores

    def _compute(self, model: CrossEncoder, pairs: list[tuple[str, str]]) -> list[bytes]:
        weights = next(model.parameters())

        def run(batch: list[tuple[str, str]]) -> NDArray[np.float32]:
            with arithmetic("auto" if self.config.precision == "auto" else "fp32", weights):
                logits = model.predict(
                    batch, batch_size=len(batch), show_progress_bar=False, activation_fn=torch.nn.Identity()
                )
            return np.asarray(logits, dtype=np.float32)

        scores = in_bulk(
            pairs,
            run,
            texts=" ".join,
            max_length=model.max_seq_length or DEFAULT_MAX_LENGTH,
            hidden_size=hidden_size_of(model),
            device=weights.device,
        )
        return [score.tobytes() for score in scores]

    def _load(self, device: str) -> CrossEncoder:
        from sentence_transformers import CrossEncoder

        config = self.config
        with quiet_libraries():
            model: CrossEncoder = CrossEncoder(
                str(self.folder),
                device=device,
                trust_remote_code=config.trust_remote_code,
                max_length=config.max_length,
                model_kwargs={"dtype": stored_in(config.precision)},
            )
        made = (getattr(model.config, "architectures", None) or [""])[0]
        if made and not made.endswith(("ForSequenceClassification", "ForCausalLM")):
            raise UntrainedEncoderError(
                f"{config.name} is a {made}: the head that scores pairs would be a random one",
                hint="Use a cross-encoder that was trained to rank.",
            )
        if model.num_labels != 1:
            raise TrainingError(
                f"{config.name} has {model.num_labels} outputs, a teacher has one score",
                hint="Use a cross-encoder that was trained to rank.",
            )
        return model


def devices_of(wanted: str | None) -> list[str]:
    """The devices that a teacher computes on: the one that is wanted, else one for each process."""
    if wanted is not None:
        return [wanted]
    found = util.get_device_name()
    count = min(processes_here(), torch.cuda.device_count()) if found.startswith("cuda") else 1
    return [found] if count <= 1 else [f"cuda:{number}" for number in range(count)]


@contextmanager
def all_cores() -> Iterator[None]:
    """Compute with the threads of all processes: launchers give each its share of the cores."""
    own = torch.get_num_threads()
    torch.set_num_threads(max(own, min(own * processes_here(), os.cpu_count() or 1)))
    try:
        yield
    finally:
        torch.set_num_threads(own)


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
            hashlib.file_digest(file, lambda: state)
    return state.hexdigest()
