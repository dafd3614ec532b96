"""Looking: reads the data, and tries models on a few queries of it."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np

from oskit.data.collection import Collection
from oskit.data.documents import Document
from oskit.encoder.loader.hub import HubOptions, local_or_fetched
from oskit.errors import EncoderError, OskitError
from oskit.evaluation.offline.metrics import Run, quality
from oskit.training.auto.facts import TAUGHT, Facts, StudentSeen, TeacherSeen, longest_read
from oskit.training.data.arrow import column_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from oskit.encoder.model import NeuralSparseEncoder
    from oskit.training.data.training_data import TrainingData
    from oskit.training.loop.events import Listener

Seen = TypeVar("Seen")

STUDENTS = (
    "rasyosef/splade-tiny",
    "rasyosef/splade-mini",
    "opensearch-project/opensearch-neural-sparse-encoding-v2-distill",
    "opensearch-project/opensearch-neural-sparse-encoding-multilingual-v1",
    "sentence-transformers/all-MiniLM-L6-v2",
    "distilbert/distilbert-base-uncased",
    "google-bert/bert-base-multilingual-cased",
)
"""Encoders and bases that are tried where they are in the cache, and nobody names one."""

TEACHERS = (
    "sentence-transformers/all-MiniLM-L6-v2",
    "BAAI/bge-small-en-v1.5",
    "BAAI/bge-base-en-v1.5",
    "intfloat/multilingual-e5-small",
    "intfloat/multilingual-e5-base",
    "sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2",
)
"""The same for dense models."""

_QUERIES, _DOCUMENTS = 150, 600
"""Of a trial."""

_BATCH = 8
"""Examples of the step whose time is taken."""


class Named(NamedTuple):
    """Encoders and bases, and dense models, that are to be tried."""

    students: tuple[str, ...]
    teachers: tuple[str, ...]
    directions: bool = True  # whether a dense model may be made sparse


def here(names: Sequence[str]) -> list[str]:
    """Those that are on this machine: folders, or in the Hub's cache."""
    found = []
    for name in names:
        try:
            local_or_fetched(name, HubOptions(local_files_only=True))
        except EncoderError:
            continue
        found.append(name)
    return found


def look(data: TrainingData, named: Named, *, minutes: float, listener: Listener) -> Facts:
    """Try models on a part of the data; one that cannot be used is left out, with a warning.

    Raises:
        MissingDependencyError: BM25's package is not installed.
        DataError: The documents have no words.
    """
    from oskit.evaluation.offline.bm25 import rank_bm25

    asked = _asked(data)
    trial = _trial(data, asked)
    listener.doing(f"trying models on {len(trial.queries):,} of your queries")
    found = rank_bm25(trial, k=10)
    counts, scores = (
        np.fromiter((len(row or ()) for row in column_of(data.examples, name)), dtype=np.int64)
        for name in ("candidates", "scores")
    )

    def tried(name: str, work: Callable[[str, Collection], Seen]) -> tuple[Seen, ...]:
        listener.doing(f"trying {name}")
        try:
            return (work(name, trial),)
        except OskitError as error:
            listener.warning(f"{name} is left out: {error.message}")
            return ()

    return Facts(
        queries=len(data.examples),
        documents=len(data.corpus),
        candidates=float((counts - np.asarray(data.examples["positives"])).mean()),
        scored=float((scores > 0).mean()),
        language=found.settings.language,
        bm25=_ndcg(found.run, trial),
        machine=_machine(),
        minutes=minutes,
        made=len(data.examples) - len(asked) if len(asked) < len(data.examples) else 0,
        bfloat16=fast_bfloat16(),
        students=tuple(
            one
            for name in named.students
            for one in tried(name, partial(_student, directions=named.directions))
        ),
        teachers=tuple(one for name in named.teachers for one in tried(name, _teacher)),
    )


def _ndcg(run: Run, trial: Collection) -> float:
    return quality(run, trial.qrels, ("nDCG@10",)).mean["nDCG@10"]


def _asked(data: TrainingData) -> NDArray[np.int64]:
    """The examples that people asked; all of them, where each was made of documents."""
    counts = [source.examples for source in data.sources]
    made = np.repeat([source.kind == "documents" for source in data.sources], counts)
    if len(made) != len(data.examples) or made.all():
        return np.arange(len(data.examples))
    return np.flatnonzero(~made)


def _trial(data: TrainingData, asked: NDArray[np.int64]) -> Collection:
    """Some queries with their known positives, among documents at random."""
    rng = np.random.default_rng(0)
    rows = data.examples[np.sort(rng.permutation(asked)[:_QUERIES]).tolist()]
    columns = zip(rows["candidates"], rows["positives"], rows["scores"], strict=True)
    relevant = {f"q{number}": _relevant(*row) for number, row in enumerate(columns)}
    needed = dict.fromkeys(row for found in relevant.values() for row in found)
    others = rng.permutation(len(data.corpus))[:_DOCUMENTS].tolist()
    chosen = list(dict.fromkeys([*needed, *others]))
    texts = data.texts_of(chosen)
    corpus = tuple(Document(str(row), text) for row, text in zip(chosen, texts, strict=True))
    qrels = {query: {str(row): 1 for row in found} for query, found in relevant.items()}
    queries = {f"q{number}": query for number, query in enumerate(rows["query"])}
    return Collection(queries, qrels, corpus, name="trial")


def _relevant(candidates: list[int], positives: int, scores: list[float]) -> list[int]:
    """The known positives; of a query without any the candidate that the data scores best."""
    return candidates[:positives] or [candidates[int(np.nanargmax(scores)) if scores else 0]]


def _student(name: str, trial: Collection, *, directions: bool) -> StudentSeen:
    from oskit.archive.tokenization import measure_tokenization
    from oskit.encoder.loader.report import UntrainedProjectionWarning
    from oskit.encoder.model import NeuralSparseEncoder
    from oskit.encoder.surgery.dense_head import fit_dense_head
    from oskit.evaluation.offline.exact_scores import rank_exactly

    folder = local_or_fetched(name)  # one that is not there must not become the base
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UntrainedProjectionWarning)
        encoder = NeuralSparseEncoder.from_pretrained(folder)
    texts = [document.passage for document in trial.documents()]
    queries = list(trial.queries.values())
    lengths = [_lengths(encoder, side) for side in (queries, texts)]
    ndcg, reads, dense = 0.0, 0.0, directions and encoder.is_untrained
    if dense:
        try:
            fit_dense_head(encoder, texts)
        except EncoderError:  # its layers are not like BERT's
            dense = False
    if not encoder.is_untrained:
        with _seconds() as taken:
            ranking = rank_exactly(encoder, trial, k=10)
        ndcg = _ndcg(ranking.run, trial)
        reads = sum(map(sum, lengths)) / taken[0]
    parameters = sum(parameter.numel() for parameter in encoder.parameters())
    most = longest_read(parameters, encoder.max_length)
    learns = _learns(encoder, queries[:_BATCH], texts[:_BATCH], most)
    long = sorted(lengths[1])
    return StudentSeen(
        name=name,
        parameters=parameters,
        ndcg=ndcg,
        reads=reads or 3 * learns,  # a step computes forwards once and backwards, which is twice as much
        learns=learns,
        query_tokens=float(np.mean(lengths[0])),
        document_tokens=(float(np.mean(lengths[1])), float(long[int(0.9 * len(long))])),
        max_length=encoder.max_length,
        strange=measure_tokenization(encoder.vocabulary, texts).shatters,
        projected=encoder.anatomy.projection is not None,
        dense=dense,
    )


def _lengths(encoder: NeuralSparseEncoder, texts: Sequence[str]) -> list[int]:
    return [len(encoding.ids) for encoding in encoder.anatomy.tokenize(texts)]


def _learns(encoder: NeuralSparseEncoder, queries: Sequence[str], texts: Sequence[str], most: int) -> float:
    """Tokens a second of a training step on that many tokens of a text at most."""
    import torch

    from oskit.training.loop.student import plain_attention

    encoder.train()
    read = [[one.ids for one in encoder.anatomy.tokenize(side, most)] for side in (queries, texts)]
    plain_attention(encoder, max(len(ids) for side in read for ids in side))

    def step() -> int:
        features = [encoder.anatomy.features(side) for side in read]
        with torch.autocast("cpu", torch.bfloat16, enabled=fast_bfloat16()):
            vectors = [encoder(side)["sentence_embedding"].float() for side in features]
        (vectors[0] @ vectors[1].T).sum().backward()
        encoder.zero_grad()
        return sum(int(side["attention_mask"].sum()) for side in features)

    step()
    with _seconds() as taken:
        tokens = step()
    return tokens / taken[0]


def _teacher(name: str, trial: Collection) -> TeacherSeen:
    from oskit.evaluation.offline.dense import DenseModel, rank_dense

    model = DenseModel(name, max_length=TAUGHT, precision="bfloat16" if fast_bfloat16() else None)
    with _seconds() as taken:
        found = rank_dense(model, trial, k=10)
    texts = (*trial.queries.values(), *(document.passage for document in trial.documents()))
    # A word is some four thirds of a token, in a language that the model knows.
    tokens = sum(min(TAUGHT, 4 * len(text.split()) // 3 + 2) for text in texts)
    return TeacherSeen(name, _ndcg(found.run, trial), tokens / taken[0])


@contextmanager
def _seconds() -> Iterator[list[float]]:
    """How long the block took, once it has ended."""
    taken: list[float] = []
    start = time.perf_counter()
    yield taken
    taken.append(time.perf_counter() - start)


def fast_bfloat16() -> bool:
    """Whether the CPU computes here, and multiplies bfloat16 in hardware (AVX-512 BF16)."""
    import torch

    supported: Callable[[], bool] = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return not torch.cuda.is_available() and bool(supported())


def _machine() -> str:
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return f"{cores} CPU cores"
