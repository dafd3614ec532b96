"""``oskit serve`` beside the encoder called directly: python -m benchmarks.serve ARCHIVE.

Texts a second, and the processor's time of the serving process alone, with 1, 8 and 64 clients; beside them
the archive called by itself, and serving as it is often written: each request is a run of its own, in a pool
of threads; with --url the archive as a model of that cluster, too. Then how long a query takes while
documents are encoded, and while nothing is.
"""

from __future__ import annotations

import http.client
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle, product
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click

from benchmarks.throughput import documents_of

DIRECT = "called directly"

QUERIES_A_SECOND = 20
"""Queries come at this rate whatever the answers take: who waits for an answer asks too few slow ones."""


@click.command()
@click.argument("archive", type=click.Path(exists=True))
@click.option("--texts", "path", type=click.Path(exists=True), help="Documents; else the demo's collection.")
@click.option("--words", type=int, help="Cut texts to so many.")
@click.option("--seconds", default=10.0, show_default=True, help="Of each contender in each round.")
@click.option("--repeats", default=3, show_default=True, help="Rounds; each contender runs once in a round.")
@click.option("--batch", default=16, show_default=True, help="Texts of a request, where it has several.")
@click.option("--url", help="A cluster, to run the archive as a local model of it, too.")
@click.option(
    "--clients", default="1,8,64", show_default=True, help="How many at once; '' for latencies only."
)
def main(
    archive: str,
    path: str | None,
    words: int | None,
    seconds: float,
    repeats: int,
    batch: int,
    url: str | None,
    clients: str,
) -> None:
    """Measure serving."""
    texts = [document.passage for document in documents_of(path, 1000, words)]
    counts = [int(count) for count in clients.split(",") if count]
    with tempfile.TemporaryDirectory() as folder:
        queries = _query_archive(archive, Path(folder) / "queries.zip")
        served = ["-m", "oskit", "serve", f"symmetric={archive}", "--port", "0", "--json", "--quiet"]
        free = [*served, f"free={queries}"]
        contenders: dict[str, Callable[[], tuple[float, float]]] = {
            DIRECT: lambda: _direct(archive, texts, seconds, None),
            f"{DIRECT}, one thread": lambda: _direct(archive, texts, seconds, 1),
        }
        for size in (batch, 1):
            for count in counts:
                contenders[f"oskit serve, {count} clients, {size} texts a request"] = (
                    lambda count=count, size=size: _served(served, "/v1/sparse", texts, count, size, seconds)
                )
                contenders[f"a run for each request, {count} clients, {size} texts a request"] = (
                    lambda count=count, size=size: _served(
                        ["-m", "benchmarks.serve_plainly", archive], "/", texts, count, size, seconds
                    )
                )
        local = _local_model(url, archive) if url and counts else None
        for size, count in product((batch, 1), counts if local else ()):
            contenders[f"a model of the cluster, {count} clients, {size} texts a request"] = (
                lambda count=count, size=size: _in_cluster(local, texts, count, size, seconds)
            )
        if counts:
            _print([{name: run() for name, run in contenders.items()} for _ in range(repeats)])
        for name in ("free", "symmetric"):
            _latencies(free, f"/models/{name}/v1/sparse/query", texts, batch, seconds)


def _print(rounds: Sequence[dict[str, tuple[float, float]]]) -> None:
    click.echo(f"{'':<58}{'texts/s':>9}{'x direct':>9}{'CPU ms/text':>13}{'x direct':>9}")
    for name in rounds[0]:
        rate, cost = (statistics.median(found[name][place] for found in rounds) for place in (0, 1))
        faster = statistics.median(found[name][0] / found[DIRECT][0] for found in rounds)
        dearer = statistics.median(found[name][1] / found[DIRECT][1] for found in rounds)
        click.echo(f"{name:<58}{rate:>9.1f}{faster:>9.2f}{1000 * cost:>13.2f}{dearer:>9.2f}")


def _direct(archive: str, texts: Sequence[str], seconds: float, threads: int | None) -> tuple[float, float]:
    """Texts a second, and the processor's seconds for one."""
    code = (
        "import json,sys,time; from oskit.archive.encoder import ArchiveEncoder;"
        "texts, seconds, threads = json.load(sys.stdin);"
        "encoder = ArchiveEncoder.open(sys.argv[1], threads=threads);"
        "encoder.document_weights(texts[:64]); start, cpu, done = time.monotonic(), time.process_time(), 0\n"
        "while time.monotonic() - start < seconds: done += len(encoder.document_weights(texts))\n"
        "print(done / (time.monotonic() - start), (time.process_time() - cpu) / done)"
    )
    command = [sys.executable, "-c", code, archive]
    given = json.dumps([texts, seconds, threads])
    rate, cost = subprocess.run(
        command, input=given, stdout=subprocess.PIPE, text=True, check=True
    ).stdout.split()
    return float(rate), float(cost)


@contextmanager
def _server(command: Sequence[str]) -> Iterator[tuple[str, int]]:
    """Host and process of a server, which says its URL in JSON when it is ready."""
    with subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        told = ""
        while not told.endswith("}\n") or told.count("{") > told.count("}"):
            told += process.stdout.readline()
        try:
            yield urlsplit(json.loads(told)["url"]).netloc, process.pid
        finally:
            process.terminate()


def _served(
    command: Sequence[str], path: str, texts: Sequence[str], clients: int, size: int, seconds: float
) -> tuple[float, float]:
    with _server(command) as (host, process):
        _load(host, path, texts, clients, size, 1.0)()
        before, start = _processor_seconds(process), time.monotonic()
        done = _load(host, path, texts, clients, size, seconds)()
        rate = done / (time.monotonic() - start)
        return rate, (_processor_seconds(process) - before) / done


def _local_model(url: str, archive: str) -> tuple[str, int, str]:
    """Host, process of the node (which has to be one, and here), and path of the archive as its own model."""
    from oskit.archive.archive import open_archive
    from oskit.cluster.client.connection import ConnectionSettings, connect
    from oskit.cluster.models.deploy import deploy_archive

    client = connect(ConnectionSettings(url=url))
    (node,) = client.nodes.info(metric="process")["nodes"].values()
    model = deploy_archive(client, open_archive(archive), configure_cluster=True).model_id
    return urlsplit(url).netloc, node["process"]["id"], f"/_plugins/_ml/_predict/sparse_encoding/{model}"


def _in_cluster(
    local: tuple[str, int, str], texts: Sequence[str], clients: int, size: int, seconds: float
) -> tuple[float, float]:
    host, process, path = local
    before, start = _processor_seconds(process), time.monotonic()
    done = _load(host, path, texts, clients, size, seconds)()
    return done / (time.monotonic() - start), (_processor_seconds(process) - before) / max(1, done)


def _load(
    host: str, path: str, texts: Sequence[str], clients: int, size: int, seconds: float
) -> Callable[[], int]:
    """Start clients in a process of their own; the result waits for them and says how many texts they had."""
    command = [sys.executable, "-c", "from benchmarks.serve import ask; ask()"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    process.stdin.write(json.dumps([host, path, list(texts), clients, size, seconds]))
    process.stdin.close()
    assert process.stdout is not None
    answered = process.stdout
    return lambda: int(answered.read())


def ask() -> None:
    """Be clients, as told on stdin."""
    os.nice(10)  # in life they are elsewhere
    host, path, texts, clients, size, seconds = json.load(sys.stdin)
    name = "text_docs" if "_predict" in path else "texts"
    bodies = [json.dumps({name: texts[at : at + size]}) for at in range(0, len(texts) - size + 1, size)]
    until, counts = time.monotonic() + seconds, [0] * clients

    def one(number: int) -> None:
        connection = http.client.HTTPConnection(host)
        for body in cycle(bodies[number % len(bodies) :] + bodies[: number % len(bodies)]):
            if time.monotonic() > until:
                break
            connection.request("POST", path, body, {"content-type": "application/json"})
            response = connection.getresponse()
            response.read()
            assert response.status == 200, response.status
            counts[number] += size

    threads = [threading.Thread(target=one, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(sum(counts))


def _latencies(command: Sequence[str], path: str, texts: Sequence[str], batch: int, seconds: float) -> None:
    queries = [" ".join(text.split()[:8]) for text in texts]
    with _server(command) as (host, _):
        told = []
        for busy in (False, True):
            loaded = (
                _load(host, "/models/symmetric/v1/sparse", texts, 8, batch, seconds + 2) if busy else None
            )
            time.sleep(1)
            found = sorted(_times(host, path, queries, seconds))
            if loaded is not None:
                loaded()
            p50, p99 = (1000 * found[int(share * len(found))] for share in (0.5, 0.99))
            told.append(
                f"{'8 clients load documents' if busy else 'idle'}: p50 {p50:.1f} ms, p99 {p99:.1f} ms"
            )
        click.echo(f"{path}: {'; '.join(told)}")


def _times(host: str, path: str, queries: Sequence[str], seconds: float) -> list[float]:
    connection, found, start = http.client.HTTPConnection(host), [], time.monotonic()
    for number, query in enumerate(cycle(queries)):
        due = start + number / QUERIES_A_SECOND
        if due > start + seconds:
            return found
        time.sleep(max(0.0, due - time.monotonic()))
        connection.request("POST", path, json.dumps({"texts": [query]}))
        connection.getresponse().read()
        found.append(time.monotonic() - due)
    return found


def _processor_seconds(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _query_archive(archive: str, path: Path) -> Path:
    """A tokenizer archive of the same tokens, as an inference-free encoder has one; each weighs 1."""
    from oskit.archive.archive import open_archive

    opened = open_archive(archive)
    idf: dict[str, Any] = dict.fromkeys(opened.tokenizer().get_vocab(), 1.0)
    with zipfile.ZipFile(path, "w") as made:
        made.writestr("tokenizer.json", opened.read("tokenizer.json"))
        made.writestr("idf.json", json.dumps(idf))
    return path


if __name__ == "__main__":
    main()
