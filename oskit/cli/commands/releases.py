"""`oskit releases` and `oskit rollback`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from oskit.cli.options import connection_options, output_options
from oskit.cli.releasing import quality_words, verified_words

if TYPE_CHECKING:
    from opensearchpy import OpenSearch
    from rich.console import Console

    from oskit.cli.output import Output
    from oskit.cluster.client.connection import ConnectionSettings
    from oskit.cluster.index.releases import Release


@click.command("releases")
@click.argument("alias")
@connection_options
@output_options
def releases(alias: str, connection: ConnectionSettings, out: Output) -> None:
    """List the releases of an alias.

    The living one is what the alias stands for. A release that was verified and is not living is ready, one
    that was not good enough is refused; the next release deletes both, and what is abandoned.

    \b
    Examples:
      oskit releases articles
      oskit releases articles --json
    """
    from oskit.cluster.client.needs import connect_for
    from oskit.cluster.index.releases import list_releases, read_alias
    from oskit.errors import IndexingError

    client = connect_for(connection, "releases")
    stands_for = read_alias(client, alias)
    found = list_releases(client, stands_for)
    if not found:
        raise IndexingError(
            f"there is no alias {alias!r}, and no release of it",
            hint=f"Make one: oskit ingest {alias} SOURCE… --archive DIR --release",
        )
    rows = [_row(client, release) for release in found]

    def human(console: Console) -> None:
        from rich.table import Table

        table = Table(box=None, pad_edge=False)
        for name in ("release", "state", "living since", "encoder", "documents", "size", "proof"):
            table.add_column(name, overflow="fold")
        for row in rows:
            count, size = row["documents"], row["bytes"]
            proof = [*row["failures"][:1], *([quality_words(row["quality"])] if row["quality"] else [])]
            proof = proof if row["failures"] else [verified_words(row["verified"]), *proof]
            cells = [row["release"], row["state"], row["living_since"] or "", row["encoder"] or ""]
            cells += [
                f"{count:,}" if count is not None else "",
                f"{size / 1e6:,.1f} MB" if size is not None else "",
            ]
            table.add_row(*cells, "; ".join(proof))
        console.print(table, markup=False)

    out.result(rows, human)


def _row(client: OpenSearch, release: Release) -> dict[str, Any]:
    from oskit.cluster.client.failures import cluster_errors
    from oskit.cluster.index.existing import size_and_writes
    from oskit.errors import OskitError

    info, record = release.info, release.record
    count = size = None
    try:
        with cluster_errors(f"count the documents of {release.name!r}"):
            count = int(client.count(index=release.name)["count"])
        size = size_and_writes(client, release.name)[0]
    except OskitError:
        pass  # it is closed, or gone since
    encoder = info.encoder if info else None
    said = (
        "began",
        "ready",
        "living_since",
        "retired",
        "before",
        "refused",
        "verified",
        "quality",
    )
    return {
        "release": release.name,
        "state": release.state,
        "live": release.is_living,
        "kind": info.kind if info else None,
        "encode": info.encode if info else None,
        "encoder": encoder and encoder.name,
        "encoder_sha256": encoder and encoder.sha256,
        "model_id": encoder and encoder.model_id,
        "query_model_id": encoder and encoder.query_model_id,
        "documents": count,
        "bytes": size,
        "failures": list(record.get("failures") or ()),
        "also_called": release.others,
        **{name: record.get(name) for name in said},
    }


@click.command("rollback")
@click.argument("alias")
@click.argument("release", required=False)
@connection_options
@output_options
def rollback(alias: str, release: str | None, connection: ConnectionSettings, out: Output) -> None:
    """Have an alias stand for the release before the living one, or for RELEASE.

    The alias moves in one call, once the release is open and the models answer that its searches need: those
    that are not in memory are deployed. What was written to the living one since it went live stays there.

    \b
    Examples:
      oskit rollback articles
      oskit rollback articles articles-20261128-101500-my-encoder
    """
    from oskit.cluster.client.needs import connect_for
    from oskit.cluster.index.rollback import rollback as roll_back

    done = roll_back(connect_for(connection, "rollback"), alias, release, notify=out.note)
    out.result(
        done.to_dict(),
        lambda console: console.print(f"{alias} is {done.index} now, and was {done.before}", markup=False),
    )
