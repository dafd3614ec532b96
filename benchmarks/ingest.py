"""What a load costs beside encoding: python -m benchmarks.ingest [--url URL].

Three tables: a vector to JSON beside the way it was (dictionaries, sorted, one format call a weight);
precomputed vectors beside opensearch-py with bodies that are ready; CPU time and peak memory over the number
of documents. Vectors are made up, 150 weights each, so that nothing waits for an encoder.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
import numpy as np
from scipy.sparse import csr_matrix
from tokenizers import Tokenizer
from tokenizers.models import BPE

from oskit.archive.vocabulary import Vocabulary

INDEX = "oskit-benchmark-ingest"
VOCABULARY = 30_522
WEIGHTS = 150
WORDS = 60


class MadeUp:
    """An encoder that costs nothing: every text has one of 64 vectors."""

    architecture = "symmetric"

    def __init__(self, weights: int = WEIGHTS) -> None:
        words = {f"token{n}": n for n in range(VOCABULARY)}
        self.vocabulary = Vocabulary(Tokenizer(BPE(words, [])))
        draw = np.random.default_rng(0)
        columns = [np.sort(draw.choice(VOCABULARY, weights, replace=False)) for _ in range(64)]
        data = draw.random(64 * weights, dtype=np.float32) * 2 + np.float32(0.01)
        indptr = np.arange(65) * weights
        self.matrix = csr_matrix((data, np.concatenate(columns).astype(np.int32), indptr), (64, VOCABULARY))

    def document_matrix(self, texts: list[str]) -> csr_matrix:
        """Rows in turn."""
        return self.matrix[np.arange(len(texts)) % 64]


@click.command()
@click.option("--url", help="An OpenSearch that runs; without it a local node is started.")
@click.option("--documents", default=6_000, show_default=True, help="Documents of a load.")
@click.option("--rounds", default=5, show_default=True)
@click.option("--most", default=1_000_000, show_default=True, help="Largest load of the last table.")
@click.option("--plot", type=click.Path(dir_okay=False), help="File for the cost along the largest load.")
@click.option("--growth", "only_growth", is_flag=True, help="The last table alone.")
def main(
    url: str | None, documents: int, rounds: int, most: int, plot: str | None, only_growth: bool
) -> None:
    """Measure."""
    if only_growth:
        growth(most, plot)
        return
    formatting(rounds)
    with ExitStack() as stack:
        if url is None:
            from oskit.localnode import LocalNode

            url = stack.enter_context(LocalNode()).url
        precomputed(url, documents, rounds, Path(stack.enter_context(tempfile.TemporaryDirectory())))
    growth(most, plot)


def formatting(rounds: int) -> None:
    """Documents with their vectors to the lines of a bulk request."""
    from oskit.cluster.index.mapping import IndexInfo
    from oskit.cluster.ingest.actions import ItemMaker

    encoder = MadeUp()
    maker = ItemMaker(IndexInfo("i", "rank_features", "token"), encoder, None)
    documents = list(_documents(512))
    matrix = encoder.document_matrix([""] * 512)
    keys: dict[str, str] = {}

    def before() -> None:
        for document, row in zip(documents, range(512), strict=True):
            start, end = matrix.indptr[row : row + 2]
            pairs = sorted(
                zip(matrix.indices[start:end].tolist(), matrix.data[start:end].tolist(), strict=True)
            )
            named = {encoder.vocabulary.keys[token]: weight for token, weight in pairs if weight > 0}
            ordered = dict(sorted(named.items(), key=lambda item: -item[1]))
            entries = [
                f"{keys.setdefault(key, json.dumps(key))}:{weight:.9g}" for key, weight in ordered.items()
            ]
            source = json.dumps({**document.source(), "passage": document.passage}, ensure_ascii=False)
            action = json.dumps({"index": {"_id": document.id}}, ensure_ascii=False)
            f'{action}\n{source[:-1]},"embedding":{{{",".join(entries)}}}}}\n'.encode()

    def now() -> None:
        maker.write(documents, matrix)

    taken = _in_turns({"before": before, "now": now}, rounds)
    ratio = statistics.median(a / b for a, b in zip(taken["before"], taken["now"], strict=True))
    for name, seconds in taken.items():
        click.echo(f"formatting, {name:<44}{statistics.median(seconds) / 512 * 1e6:>9.0f} us a document")
    click.echo(f"ratio, median over the rounds{'':<27}{ratio:>9.1f}\n")


def precomputed(url: str, count: int, rounds: int, folder: Path) -> None:
    """A load of files with vectors beside opensearch-py that is handed the bodies of requests."""
    from oskit.cluster.client.connection import ConnectionSettings, connect
    from oskit.cluster.index.mapping import IndexInfo, IndexSettings, delete_index, index_body
    from oskit.cluster.ingest.actions import ItemMaker
    from oskit.cluster.ingest.load import ingest
    from oskit.cluster.ingest.to_file import encode_to_file
    from oskit.data.files import read_documents

    client, encoder = connect(ConnectionSettings(url=url)), MadeUp()
    files = {name: folder / f"vectors.{name}" for name in ("parquet", "jsonl")}
    for path in files.values():
        encode_to_file(_documents(count), encoder, path)
    info = IndexInfo(INDEX, "rank_features", "token", encode="none")
    maker = ItemMaker(info, None, None)
    items = maker.make(list(read_documents([files["jsonl"]], vector_field="embedding")))  # type: ignore[arg-type]
    bodies = [b"".join(item.payload for item in items[start : start + 500]) for start in range(0, count, 500)]

    def prepared() -> None:
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(2) as pool:
            for answer in pool.map(lambda body: client.bulk(body=body, index=INDEX), bodies):
                assert not answer["errors"]
        client.indices.refresh(index=INDEX)

    def load(path: Path) -> Callable[[], None]:
        def run() -> None:
            records = read_documents([path], vector_field="embedding")
            assert ingest(client, INDEX, records, encode="none").indexed == count

        return run

    contenders = {
        "opensearch-py, bodies ready, 2 threads": prepared,
        **{f"oskit, {name}": load(path) for name, path in files.items()},
    }

    def anew(work: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            delete_index(client, INDEX)
            client.indices.create(index=INDEX, body=index_body(info, IndexSettings()))
            start = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - start)

        return run

    seconds: list[float] = []
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds + 1):
        for name, work in contenders.items():
            anew(work)()
            taken[name].append(seconds.pop())
    delete_index(client, INDEX)
    first, *others = (taken[name][1:] for name in contenders)
    for name, found in taken.items():
        click.echo(f"{name:<56}{count / statistics.median(found[1:]):>9.0f} docs/s")
    for name, found in zip(list(contenders)[1:], others, strict=True):
        ratio = statistics.median(a / b for a, b in zip(first, found, strict=True))
        click.echo(f"{f'{name} / opensearch-py':<56}{ratio:>9.2f}")
    click.echo()


def growth(most: int, plot: str | None) -> None:
    """CPU time and peak memory of loads of short documents, each in its own process, into a fake cluster."""
    found: dict[str, Any] = {}
    click.echo(f"{'documents':>12}{'CPU us a document':>20}{'peak memory, MB':>18}")
    count = 10_000
    while count <= most:
        command = [sys.executable, "-c", f"from benchmarks.ingest import one_load; one_load({count})"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        found = json.loads(said)
        click.echo(f"{count:>12,}{found['seconds'] / count * 1e6:>20.0f}{found['peak'] / 1e6:>18.0f}")
        count *= 10
    if plot is not None:
        _plot(found["along"], plot)


def _plot(along: list[list[float]], path: str) -> None:
    """What a document costs, and the memory that is held, along a load."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    done, seconds, memory = np.array(along).T
    figure, (cost, held) = pyplot.subplots(2, 1, sharex=True, figsize=(7, 5), layout="constrained")
    cost.plot(done[1:] / 1e3, np.diff(seconds) / np.diff(done) * 1e6)
    cost.set(
        ylim=(0, None), ylabel="CPU µs a document", title="One load of short documents, into a fake cluster"
    )
    held.plot(done / 1e3, memory / 1e6)
    held.set(ylim=(0, None), ylabel="memory, MB", xlabel="documents, thousands")
    figure.savefig(path)


def one_load(count: int) -> None:
    """One load, whose report is printed; the cluster says yes to everything."""
    from unittest import mock

    from oskit.cluster.client.connection import ConnectionSettings, connect
    from oskit.cluster.ingest import load

    def yes(self: Any, batch: Any) -> list[tuple[int, str]]:
        return [(201, "")] * len(batch)

    along: list[tuple[int, float, int]] = []
    done = 0

    def progress(records: int) -> None:
        nonlocal done
        done += records
        if done >= len(along) * max(count // 50, 1_000):
            along.append((done, time.process_time(), _memory("VmRSS")))

    with FakeNode() as node, mock.patch("oskit.cluster.ingest.bulk.BulkSender._request", yes):
        client, start = connect(ConnectionSettings(url=node.url)), time.process_time()
        report = load.ingest(
            client, "i", _short_documents(count), encoder=MadeUp(weights=20), progress=progress
        )
    assert report.indexed == count
    seconds, peak = time.process_time() - start, _memory("VmHWM")
    print(json.dumps({"seconds": seconds, "peak": peak, "along": along}))


def _memory(what: str) -> int:
    """In bytes. Not ``ru_maxrss``, which begins with the memory of the process that forked this one."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if what in line)
    return int(line.split()[1]) * 1024


def FakeNode() -> Any:
    """A server that answers what a load asks."""
    from tests.fake_ingest import FakeIngest

    return FakeIngest()


def _documents(count: int) -> Iterator[Any]:
    from oskit.data.documents import Document

    words = " ".join(f"word{n}" for n in range(WORDS))
    for n in range(count):
        yield Document(str(n), f"{n} {words}", "a title", {"category": "some", "n": n})


def _short_documents(count: int) -> Iterator[Any]:
    from oskit.data.documents import Document

    return (Document(str(n), f"the text of number {n}") for n in range(count))


def _in_turns(works: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    taken: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            taken[name].append(time.perf_counter() - start)
    return taken


if __name__ == "__main__":
    main()
