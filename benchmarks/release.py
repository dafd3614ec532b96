"""Releases under searches: python -m benchmarks.release [--url URL] [--rate 50].

An alias is asked at a steady rate, by raw requests over open connections, from a process of its own, while
`oskit ingest --release --keep 2` takes its place again and again, verified each time, and a rollback
brings the one before back. Every document tells its release, so an answer of two releases is seen. A search
is late by when it was due, not by when it was sent.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import multiprocessing
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click

ALIAS = "oskit-benchmark-release"
QUERY = "how do I get a new password for my account"


@dataclass
class Answers:
    """What the searches found.

    Attributes:
        late_s: Of each that was answered, how long after it was due.
        versions: Releases that were seen.
        problems: What failed, and answers of two releases.
    """

    late_s: list[float] = field(default_factory=list)
    versions: set[int] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0


def ask(url: str, body: str, rate: float, connections: int, over: Any, answers: Any) -> None:
    """Search until it is over; in a process of its own."""
    told, host, start = Answers(), urlsplit(url).netloc, time.monotonic()

    def loop(number: int) -> None:
        connection = http.client.HTTPConnection(host, timeout=30)
        for turn in range(number, sys.maxsize, connections):
            due = start + turn / rate
            time.sleep(max(0.0, due - time.monotonic()))
            if over.is_set():
                break
            try:
                connection.request("POST", f"/{ALIAS}/_search", body, {"content-type": "application/json"})
                answer = connection.getresponse()
                found = json.loads(answer.read())
                seen = {(hit["_index"], hit["_source"]["version"]) for hit in found["hits"]["hits"]}
                if answer.status != 200 or found["_shards"]["failed"] or len(seen) != 1:
                    raise ValueError(f"status {answer.status}, releases {sorted(seen)}")
                told.versions.add(seen.pop()[1])
                told.late_s.append(time.monotonic() - due)
            except Exception as problem:
                told.problems.append(f"{type(problem).__name__}: {problem}")
                connection.close()
        connection.close()

    threads = [threading.Thread(target=loop, args=(number,)) for number in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    told.seconds = time.monotonic() - start
    answers.put(told)


@click.command(help=__doc__)
@click.option("--url", help="An OpenSearch that runs; without it a local node is started.")
@click.option("--rate", default=50.0, show_default=True, help="Searches a second.")
@click.option("--connections", default=8, show_default=True)
@click.option("--releases", default=6, show_default=True, help="After the first one, which nobody asks yet.")
@click.option("--documents", default=200, show_default=True, help="Of each release.")
@click.option("--index-kind", default="rank_features", show_default=True)
def main(
    url: str | None, rate: float, connections: int, releases: int, documents: int, index_kind: str
) -> None:
    """Measure; exits with 1 if a search failed or saw two releases."""
    from exporters import export_encoder
    from oskit.archive.encoder import ArchiveEncoder
    from oskit.demo.data import demo_collection, demo_encoder
    from oskit.encoder.model import NeuralSparseEncoder
    from oskit.localnode import LocalNode

    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        network = NeuralSparseEncoder.from_pretrained(demo_encoder())
        (archive,) = export_encoder(network, folder, formats=("onnx",), name=ALIAS)
        key = "id" if index_kind == "sparse_vector" else "token"
        (weights,) = ArchiveEncoder.open(archive).query_weights([QUERY], key=key)  # type: ignore[arg-type]
        clause = {"neural_sparse": {"embedding": {"query_tokens": weights}}}
        body = json.dumps({"size": 10, "_source": ["version"], "query": clause})
        address = url or stack.enter_context(LocalNode()).url
        records = [
            {"_id": document.id, "title": document.title, "text": document.text}
            for document in islice(demo_collection("en").documents(), documents)
        ]
        source = folder / "corpus.jsonl"
        how = ["--release", "--archive", str(archive.path), "--keep", "2", "--index-kind", index_kind]

        def release(version: int) -> None:
            lines = (json.dumps({**record, "version": version}) + "\n" for record in records)
            source.write_text("".join(lines))
            run("ingest", ALIAS, str(source), *how, "--url", address)

        stack.callback(clean_up, address)
        release(0)
        spawned = multiprocessing.get_context("spawn")
        over, answers = spawned.Event(), spawned.Queue()
        searching = spawned.Process(target=ask, args=(address, body, rate, connections, over, answers))
        searching.start()
        stack.callback(searching.kill)
        time.sleep(5)
        start = time.monotonic()
        for version in range(1, releases + 1):
            release(version)
        run("rollback", ALIAS, "--url", address)
        took = time.monotonic() - start
        time.sleep(2)
        over.set()
        told: Answers = answers.get(timeout=60)
    late = sorted(told.late_s)
    click.echo(
        f"{releases} releases of {len(records):,} documents ({index_kind}), verified and pruned to 2, and "
        f"a rollback in {took:.0f} s: {len(late):,} searches answered in {told.seconds:.0f} s, "
        f"{len(late) / told.seconds:.1f}/s; {len(told.problems)} failed or mixed; saw {len(told.versions)} "
        f"releases; answered after {late[len(late) // 2] * 1000:.0f} ms (median), "
        f"{late[len(late) * 99 // 100] * 1000:.0f} ms (99 %), {late[-1] * 1000:.0f} ms (most)"
    )
    for problem in told.problems[:5]:
        click.echo(f"  {problem}")
    sys.exit(bool(told.problems))


def run(*words: str) -> None:
    """A command of oskit, which has to succeed; what it says goes nowhere."""
    from oskit.cli.main import main as oskit

    said = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
        code = oskit([*words, "--json"])
    if code:
        raise click.ClickException(said.getvalue())


def clean_up(url: str) -> None:
    """Take the releases away."""
    from oskit.cluster.client.connection import ConnectionSettings, connect

    client = connect(ConnectionSettings(url=url))
    for name in client.indices.get(index=f"{ALIAS}-*", params={"expand_wildcards": "all"}):
        client.indices.delete(index=name)


if __name__ == "__main__":
    main()
