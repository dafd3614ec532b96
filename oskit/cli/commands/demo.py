"""``oskit demo``: the whole path on a small collection."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from oskit.cli.options import connection_options, output_options

if TYPE_CHECKING:
    from oskit.cli.output import Output
    from oskit.cluster.client.connection import ConnectionSettings


@click.command("demo", short_help="Run the whole path on a small collection.")
@click.option("-o", "--output", default="demo-output", show_default=True, metavar="DIR",
              help="Folder for the collection, the archives and the report.")  # fmt: skip
@click.option("--format", "format_", type=click.Choice(["onnx", "torchscript", "both"]), default="both",
              show_default=True, help="Archives to make and to prove.")  # fmt: skip
@click.option("--train", is_flag=True,
              help="Train the encoder first, on a part of the questions; the others are asked.")  # fmt: skip
@click.option("--docker", is_flag=True, help="Start OpenSearch in a container instead of a process.")
@click.option("--keep-node", is_flag=True, help="Leave the node running, with indexes and models in it.")
@click.option("--configure-cluster", is_flag=True, help="With --url: change the settings in the way.")
@connection_options
@output_options
def demo(
    output: str,
    format_: str,
    train: bool,
    docker: bool,
    keep_node: bool,
    configure_cluster: bool,
    connection: ConnectionSettings,
    out: Output,
) -> None:
    """Run the whole path on a small collection.

    Loads a small trained encoder, exports it as ONNX and TorchScript, starts a real OpenSearch, deploys both,
    loads a collection of questions and answers into indexes of both kinds, encoded here and on the cluster,
    and proves that each retrieves what the exact scores say. Writes demo.json and demo.html, stops the node,
    and leaves nothing running. With --url it uses a cluster of yours (OSKIT_URL alone does not) and deletes
    what it made there.

    With --train the encoder first learns from seven tenths of the questions, with a dense encoder as its
    teacher; all that follows is done with the result, and measured on the other questions. That takes some
    minutes on two cores.

    \b
    Examples:
      oskit demo
      oskit demo --train --output demo-train-output
      oskit demo --format onnx --output /tmp/demo
      oskit demo --keep-node && oskit search oskit-demo-onnx-rank-features-client "who needs a permit"
      oskit demo --url http://localhost:9200
    """
    from pathlib import Path

    from oskit.extras import require
    from oskit.folders import check_writable

    require("oskit demo", "demo")
    check_writable(output)
    from oskit.demo.page import write_demo
    from oskit.demo.plan import FORMATS
    from oskit.demo.run import DemoOptions, run_demo
    from oskit.demo.tables import print_demo

    options = DemoOptions(
        output=Path(output),
        formats=FORMATS if format_ == "both" else (format_,),  # type: ignore[arg-type]
        connection=connection if _url_was_given() else None,
        docker=docker,
        keep_node=keep_node,
        configure_cluster=configure_cluster,
        train=train,
    )
    report = run_demo(options, out.note)
    out.result(report.to_dict(), lambda console: print_demo(console, report))
    out.wrote(write_demo(report, output))
    if keep_node:
        judged = options.output / "collection"
        out.note(f"Search in the browser: oskit playground --url {report.url} --collection {judged}")
        out.note(f"The node runs on at {report.url}. Stop it with: oskit node stop --name oskit-demo")
    report.raise_for_disagreement()


def _url_was_given() -> bool:
    source = click.get_current_context().get_parameter_source("url")
    return source is click.core.ParameterSource.COMMANDLINE
