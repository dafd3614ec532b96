"""``oskit playground``: one page, on this machine, that compares two ways to search."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from oskit.cli.options import connection_options, output_options, runtime_options
from oskit.errors import UsageError

if TYPE_CHECKING:
    from oskit.archive.backends.runtime import Runtime
    from oskit.archive.text_encoder import TextEncoder
    from oskit.cli.output import Output
    from oskit.cluster.client.connection import ConnectionSettings

RETRY_FOR_S = 3.0
"""How long a person who looks at the page waits for a cluster that is busy or away, unless told otherwise."""


@click.command("playground")
@click.argument("indexes", nargs=-1, metavar="[INDEX]...")
@click.option(
    "--archive",
    "archives",
    metavar="DIR",
    type=click.Path(),
    multiple=True,
    help="An exported encoder to choose beside the model that an index was made with; repeat it.",
)
@click.option(
    "--model",
    "models",
    metavar="NAME|ID",
    multiple=True,
    help="A deployed encoder to choose, too; repeat it.",
)
@click.option(
    "--collection",
    metavar="DIR",
    type=click.Path(),
    help="Judged queries to step through: a folder in BEIR's layout.",
)
@click.option("--split", metavar="NAME", help="Of the collection's judgements.  [test]")
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Where to listen; an address of this machine alone.",
)
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8081, show_default=True, help="0 takes a free one."
)
@click.option("--open", "opens", is_flag=True, help="Open the page in the browser.")
@runtime_options()
@connection_options
@output_options
def playground(
    indexes: tuple[str, ...],
    archives: tuple[str, ...],
    models: tuple[str, ...],
    collection: str | None,
    split: str | None,
    host: str,
    port: int,
    opens: bool,
    runtime: Runtime,
    connection: ConnectionSettings,
    out: Output,
) -> None:
    """Compare two ways to search in the browser.

    Serves one page on this machine and prints its URL: a query, the hits of two ways side by side (index,
    encoder, BM25, sparse, hybrid, filters), what moved between them, which tokens matched with what weight,
    the token weights of the query and of any text, latency, and the search body to copy. Without INDEX all
    with sparse vectors are offered. With --collection judged queries are stepped through.

    It changes nothing in the cluster, and the browser gets no credentials: this process asks the cluster.
    Only this machine can reach it, and only with the token in the URL.

    \b
    Examples:
      oskit playground
      oskit playground articles articles-v2 --open
      oskit playground articles --archive out --collection my-collection
    """
    from oskit.extras import require

    require("oskit playground", "serve")
    import secrets
    import webbrowser

    from oskit.cluster.client.connection import connect
    from oskit.cluster.client.needs import check
    from oskit.cluster.models.registry import find_model
    from oskit.data.collection import Collection
    from oskit.playground.answer import Judged
    from oskit.playground.app import Playground
    from oskit.playground.offer import Offer, read_only
    from oskit.serve.process import Process
    from oskit.serve.server import Address

    address = Address(host, port)
    if not address.is_loopback:
        raise UsageError(
            f"{host} can be reached from other machines, and whoever opened the page would read the cluster",
            hint=f"Listen on 127.0.0.1; from elsewhere it is reached by: ssh -L {port}:127.0.0.1:{port} HOST",
        )
    if collection is None and split is not None:
        raise UsageError("--split has no effect without --collection")
    judged = None if collection is None else Judged(Collection.open(collection, split or "test"))
    encoders = _opened(archives, runtime)
    if "retry_for" not in connection.model_fields_set:
        connection = connection.model_copy(update={"retry_for": RETRY_FOR_S})
    client = connect(connection)
    kind = check(client, "playground")
    read_only(client)
    for model in models:
        find_model(client, model)
    offer = Offer(client, indexes, encoders, models)
    for name in offer.names() if indexes else offer.names()[:1]:
        offer.index(name)
    bound = address.bind()
    token = secrets.token_urlsafe(16)
    url = f"{address.url(bound)}/?token={token}"

    def ready() -> None:
        out.result(
            {"url": url, "indexes": offer.names()},
            lambda console: console.print(url, soft_wrap=True, markup=False),
        )
        out.note("Open it in a browser on this machine. Ctrl-C ends it.")
        if opens and not webbrowser.open(url):
            out.warn("no browser could be opened: open the URL by hand")

    title = " · ".join(filter(None, (kind.name, str(kind))))
    Process(Playground(offer, token, judged, title).app(), ready, timeout_graceful_shutdown=1).run([bound])


def _opened(archives: tuple[str, ...], runtime: Runtime) -> dict[str, TextEncoder]:
    """The encoders of ``--archive`` by the archives' names, or by their paths where two have the same."""
    if not archives:
        runtime.refuse_unused("without --archive")
        return {}
    from oskit.archive.encoder import ArchiveEncoder

    opened = [(path, ArchiveEncoder.open(Path(path), runtime=runtime)) for path in archives]
    names = [encoder.archive.name for _, encoder in opened]
    return {
        (path if names.count(encoder.archive.name) > 1 else encoder.archive.name): encoder
        for path, encoder in opened
    }
