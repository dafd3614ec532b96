"""`oskit node`: run a real OpenSearch on this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from oskit.cli.options import output_options
from oskit.cli.output import duration

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from oskit.cli.output import Output
    from oskit.localnode import Node, NodeStatus


def _default_heap() -> str:
    from oskit.localnode.configuration import default_heap

    return default_heap()


_name_option = click.option("--name", default="default", show_default=True, help="Which node.")


@click.group("node")
def node() -> None:
    """Run a real OpenSearch on this machine, as a process or a container.

    It has k-NN, ML Commons and neural search, and the PyTorch natives in place, so that deploying a model
    needs no network. It listens on 127.0.0.1 only and asks for no password.

    \b
    Examples:
      oskit node start
      export OSKIT_URL=http://127.0.0.1:9200
      oskit node status --json
      oskit node stop
    """


@node.command("start")
@_name_option
@click.option(
    "--port",
    type=click.IntRange(1, 65535),
    metavar="PORT",
    help="Where to listen; by default 9200 or the next that is free.",
)
@click.option(
    "--heap",
    default=_default_heap,
    metavar="SIZE",
    help="Java heap, as 1g or 1500m.  [default: a quarter of the memory, from 512m to 2g]",
)
@click.option("--docker", is_flag=True, help="In a container instead of a process.")
@click.option(
    "--image",
    metavar="IMAGE",
    help="The container's image.  [OSKIT_OPENSEARCH_IMAGE; what `image build` made; the official one]",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=1),
    default=300,
    show_default=True,
    metavar="SECONDS",
    help="How long it may take to become ready.",
)
@output_options
def start(name: str, docker: bool, image: str | None, out: Output, **options: Any) -> None:
    """Start a node and wait until it is ready.

    Its data stay when it stops. Starting a node that runs changes nothing. The first start fetches
    OpenSearch (0.7 GB) and keeps it.

    \b
    Examples:
      oskit node start
      oskit node start --name second --heap 2g
      oskit node start --docker --image oskit-opensearch:3.6.0
    """
    from oskit.errors import UsageError
    from oskit.localnode import DockerNode, LocalNode

    if image and not docker:
        raise UsageError("--image is for containers", hint="Add --docker.")
    with out.progress("Starting OpenSearch", unit="") as handle:
        options["progress"] = handle.update
        started: Node = DockerNode(name, image=image, **options) if docker else LocalNode(name, **options)
        started.start(detach=True)
    _tell_status(started, out)


@node.command("stop")
@_name_option
@output_options
def stop(name: str, out: Output) -> None:
    """Stop a node; its data stay.

    \b
    Examples:
      oskit node stop
      oskit node stop --name second
    """
    from oskit.localnode import find_node

    stopped = find_node(name).stop()
    out.result({"name": name, "stopped": stopped})
    out.note(f"The node {name!r} {'is stopped' if stopped else 'did not run'}.")


@node.command("status")
@_name_option
@output_options
def status(name: str, out: Output) -> None:
    """Show whether a node runs, where, since when, and how it is.

    \b
    Examples:
      oskit node status
      oskit node status --json
    """
    from oskit.localnode import find_node

    _tell_status(find_node(name), out)


@node.command("logs")
@_name_option
@click.option("-n", "--lines", type=click.IntRange(min=0), default=100, show_default=True, metavar="N",
              help="How many lines from the end.")  # fmt: skip
@click.option("-f", "--follow", is_flag=True, help="Go on until the node stops.")
def logs(name: str, lines: int, follow: bool) -> None:
    """Print what a node has written since its last start.

    \b
    Examples:
      oskit node logs -n 20
      oskit node logs --follow
    """
    from oskit.localnode import find_node

    found = find_node(name)
    for text in found.follow(lines) if follow else (found.logs(lines),):
        click.echo(text, nl=False)


@node.group("image")
def image() -> None:
    """Container images of OpenSearch."""


@image.command("build")
@click.option(
    "--tag", metavar="TAG", help="The image's name.  [oskit-opensearch:VERSION, VERSION being OpenSearch's]"
)
@click.option("--force", is_flag=True, help="Build it anew, even if it is there and up to date.")
@output_options
def build(tag: str | None, force: bool, out: Output) -> None:
    """Build an image of OpenSearch without any public image.

    It is made of a Debian system by debootstrap, this machine's Java and the published artifacts, and behaves
    like the official image. Needs Linux, root, debootstrap and a Docker engine.

    \b
    Examples:
      sudo oskit node image build
      OSKIT_OPENSEARCH_IMAGE=oskit-opensearch:3.6.0 oskit node start --docker
    """
    from oskit.localnode.image import build_image

    with out.progress("Building", unit="") as handle:
        made = build_image(tag, force=force, progress=handle.update)
    out.result(
        made._asdict(),
        lambda console: console.print(
            f"{made.tag}  {made.id}  {made.bytes / 1e9:.1f} GB{'' if made.built else '  (up to date)'}"
        ),
    )
    out.note(f"export OSKIT_OPENSEARCH_IMAGE={made.tag}")


def _tell_status(node: Node, out: Output) -> None:
    status = node.status()
    out.result(status._asdict(), lambda console: _print_status(console, status))
    if status.state == "running":
        out.note(f"export OSKIT_URL={status.url}")


def _print_status(console: Console, status: NodeStatus) -> None:
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    rows: list[tuple[str, str | int | Path | None]] = [
        ("node", status.name),
        ("state", status.state if status.kind == "process" else f"{status.state} (container)"),
        ("url", status.url),
        ("pid", status.pid),
        ("container", status.container),
        ("version", status.version),
        ("health", status.health),
        ("uptime", None if status.uptime_seconds is None else duration(status.uptime_seconds)),
        ("data", None if status.data_bytes is None else f"{status.data_bytes / 1e6:.1f} MB"),
        ("folder", status.folder),
    ]
    for label, value in rows:
        if value is not None:
            table.add_row(label, str(value))
    console.print(table)
