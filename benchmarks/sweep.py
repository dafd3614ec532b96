"""What the settings of a search cost and find, in an index of each kind with 100,000 documents."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt
from opensearchpy import OpenSearch, helpers
from scipy.sparse import csr_matrix

from oskit.archive.token_weights import TokenWeightsMixin
from oskit.cluster.client.connection import ConnectionSettings, connect
from oskit.cluster.index.mapping import (
    INDEX_KINDS,
    IndexInfo,
    IndexKind,
    IndexSettings,
    SparseVectorParameters,
    delete_index,
    index_body,
)
from oskit.cluster.index.recreate import create
from oskit.data.collection import Collection
from oskit.evaluation.live.sweep import sweep
from oskit.evaluation.reports.sweep import write_sweep
from oskit.evaluation.reports.terminal import print_sweep

TOKENS = 30_000
TOPICS = 3_000
OF_A_TOPIC = 80
OF_A_DOCUMENT = 90
OF_A_QUERY = 22
THRESHOLD = 10_000
"""Documents of a segment from which it is searched approximately; there is one segment in the end."""


@dataclass
class Words:
    """A vocabulary of numbers."""

    keys: list[str]
    key_format = "token"
    unknown_id = None

    @property
    def size(self) -> int:
        """Number of tokens."""
        return len(self.keys)


class SpelledEncoder(TokenWeightsMixin):
    """``"3:1.5 7:0.3"`` is the vector with 1.5 at token 3 and 0.3 at token 7: weights made before."""

    architecture = "symmetric"
    vocabulary = Words([f"t{number}" for number in range(TOKENS)])

    def document_matrix(self, texts: list[str]) -> csr_matrix:
        """The vectors that the texts spell."""
        rows, columns, values = [], [], []
        for row, text in enumerate(texts):
            for part in text.split():
                token, _, weight = part.partition(":")
                rows.append(row)
                columns.append(int(token))
                values.append(float(weight))
        shape = (len(texts), TOKENS)
        return csr_matrix((np.array(values, dtype=np.float32), (rows, columns)), shape=shape)

    query_matrix = document_matrix


class Corpus:
    """Documents of topics: tokens of one topic, of a second one, and of all, as frequent as Zipf says.

    Token weights are log-normal, about as those of trained encoders are. A query is made of the tokens of one
    document, its heaviest rather than others, and of its topic, as an encoder expands it.
    """

    def __init__(self, seed: int = 0) -> None:
        self._rng = np.random.default_rng(seed)
        zipf = 1.0 / np.arange(1, TOKENS + 1)
        self._zipf = np.cumsum(zipf / zipf.sum())
        popularity = 1.0 / np.arange(1, TOPICS + 1) ** 0.7
        self._popular = np.cumsum(popularity / popularity.sum())
        flat = np.cumsum((zipf**0.6) / (zipf**0.6).sum())
        self._topics = np.searchsorted(flat, self._rng.random((TOPICS, OF_A_TOPIC)))
        self._place = 1.0 / np.arange(1, OF_A_TOPIC + 1) ** 0.8

    def documents(self, count: int) -> Iterator[tuple[int, dict[int, float]]]:
        """The topic and the vector of each document."""
        for _ in range(count):
            first, second = np.searchsorted(self._popular, self._rng.random(2))
            yield int(first), self._vector([(first, 45), (second, 20)], OF_A_DOCUMENT - 65)

    def query(self, topic: int, document: dict[int, float]) -> dict[int, float]:
        """A query about a document."""
        tokens = list(document)
        values = np.array(list(document.values()))
        chosen = self._rng.choice(len(tokens), OF_A_QUERY - 8, replace=False, p=values / values.sum())
        vector = self._vector([(topic, 8)], 0)
        return vector | {tokens[one]: float(values[one]) * 1.2 for one in chosen}

    def _vector(self, parts: list[tuple[int, int]], others: int) -> dict[int, float]:
        vector: dict[int, float] = {}
        for token in np.searchsorted(self._zipf, self._rng.random(others)):
            vector[int(token)] = float(self._rng.lognormal(-1.6, 0.6))
        for topic, count in parts:
            places = self._rng.choice(OF_A_TOPIC, count, replace=False, p=self._place / self._place.sum())
            weights: npt.NDArray[np.float64] = self._rng.lognormal(-0.7, 0.7, count)
            for place, weight in zip(places, weights, strict=True):
                vector[int(self._topics[topic, place])] = float(min(weight, 3.5))
        return vector


def load(
    client: OpenSearch, name: str, kind: IndexKind, documents: int, threshold: int = THRESHOLD
) -> Collection:
    """Make an index, load it with weights that are there already, and return queries with their documents."""
    delete_index(client, name)
    info = IndexInfo(name, kind, "id" if kind == "sparse_vector" else "token", encode="client")
    parameters = SparseVectorParameters(approximate_threshold=threshold if kind == "sparse_vector" else None)
    create(client, name, index_body(info, IndexSettings(kind, replicas=0, sparse_vector=parameters)))
    corpus, keys = Corpus(), SpelledEncoder.vocabulary.keys
    queries: dict[str, str] = {}
    qrels: dict[str, dict[str, int]] = {}

    def actions() -> Iterator[dict[str, object]]:
        every = max(1, documents // 1000)
        for number, (topic, vector) in enumerate(corpus.documents(documents)):
            if number % every == 0:
                query = corpus.query(topic, vector)
                queries[f"q{number}"] = " ".join(f"{token}:{weight:.5g}" for token, weight in query.items())
                qrels[f"q{number}"] = {str(number): 1}
            named = {
                (str(token) if info.key == "id" else keys[token]): round(weight, 5)
                for token, weight in vector.items()
            }
            yield {"_index": name, "_id": str(number), "embedding": named}

    start = time.perf_counter()
    helpers.bulk(client, actions(), chunk_size=1000, request_timeout=120)
    client.indices.forcemerge(index=name, params={"max_num_segments": 1, "request_timeout": 600})
    client.indices.refresh(index=name)
    print(f"{name}: {documents:,} documents in {time.perf_counter() - start:,.0f} s")
    return Collection(queries=queries, qrels=qrels, corpus=(), name="made up")


@click.command(help=__doc__)
@click.option("--url", default="http://localhost:9200", show_default=True)
@click.option("--documents", default=100_000, show_default=True)
@click.option("--queries", default=100, show_default=True)
@click.option("--report", type=click.Path(path_type=Path), help="Folder for the reports.")
def main(url: str, documents: int, queries: int, report: Path | None) -> None:
    """Load, sweep and print."""
    from rich.console import Console

    client, console = connect(ConnectionSettings(url=url)), Console()
    for kind in INDEX_KINDS:
        name = f"oskit-benchmark-sweep-{kind.replace('_', '-')}"
        try:
            collection = load(client, name, kind, documents)
            found = sweep(client, name, collection, SpelledEncoder(), queries=queries, on_step=print)
            print_sweep(console, found)
            if report is not None:
                print(*write_sweep(found, report / kind), sep="\n")
        finally:
            delete_index(client, name)
