"""What the periodic refresh costs a load: the node's CPU time, beside an index that does not refresh."""

from __future__ import annotations

import json
import random
from statistics import median

import click
from opensearchpy import OpenSearch

from oskit.cluster.client.connection import ConnectionSettings, connect
from oskit.localnode import LocalNode

INDEX = "oskit-benchmark-refresh"
INTERVALS = {"default": None, "off": "-1", "30 s": "30s"}
BULK = 500


def bulks(documents: int, tokens: int) -> list[str]:
    """Bodies of bulk requests: documents with made-up weights."""
    rng = random.Random(1)
    lines = []
    for number in range(documents):
        weights = {f"tok{token}": round(rng.uniform(0.01, 3), 4) for token in rng.sample(range(8000), tokens)}
        lines.append(
            json.dumps({"index": {"_id": str(number)}}) + "\n" + json.dumps({"embedding": weights}) + "\n"
        )
    return ["".join(lines[start : start + BULK]) for start in range(0, documents, BULK)]


def cpu_s(client: OpenSearch) -> float:
    """CPU seconds of the node so far."""
    (node,) = client.nodes.stats(metric="process")["nodes"].values()
    return float(node["process"]["cpu"]["total_in_millis"]) / 1000


def load(client: OpenSearch, bodies: list[str], interval: str | None) -> float:
    """CPU seconds that the node needs to take the documents and to refresh once."""
    settings = {"number_of_replicas": 0, **({"refresh_interval": interval} if interval else {})}
    mapping = {"properties": {"embedding": {"type": "rank_features"}}}
    client.indices.create(index=INDEX, body={"settings": {"index": settings}, "mappings": mapping})
    before = cpu_s(client)
    for body in bodies:
        client.bulk(index=INDEX, body=body)
    client.indices.refresh(index=INDEX)
    used = cpu_s(client) - before
    client.indices.delete(index=INDEX)
    return used


@click.command(help=__doc__)
@click.option("--documents", default=10_000, show_default=True)
@click.option("--tokens", default=100, show_default=True, help="Of a document.")
@click.option("--rounds", default=5, show_default=True, help="After a first one that is not counted.")
def main(documents: int, tokens: int, rounds: int) -> None:
    """Print CPU seconds, and their ratio to those of an index without refresh, as medians."""
    bodies = bulks(documents, tokens)
    used: dict[str, list[float]] = {name: [] for name in INTERVALS}
    with LocalNode() as node:
        client = connect(ConnectionSettings(url=node.url))
        for turn in range(rounds + 1):
            for name in list(INTERVALS)[:: 1 if turn % 2 else -1]:
                took = load(client, bodies, INTERVALS[name])
                if turn:
                    used[name].append(took)
    for name, seconds in used.items():
        ratio = median(one / off for one, off in zip(seconds, used["off"], strict=True))
        click.echo(f"{name:8} {median(seconds):6.2f} CPU s   {ratio:.2f}")


if __name__ == "__main__":
    main()
