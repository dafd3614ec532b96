"""The main job: load, export, start a node, deploy, ingest, prove, and clean up."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oskit.cluster.client.connection import ConnectionSettings, connect
from oskit.cluster.client.kind import kind_of
from oskit.demo.cluster_job import ClusterJob
from oskit.demo.data import demo_collection, demo_encoder
from oskit.demo.export import export_demo
from oskit.demo.plan import FORMATS, Format, plans
from oskit.demo.result import DemoReport
from oskit.demo.steps import Steps, Tell
from oskit.demo.training import train_demo
from oskit.encoder.loader.report import TIER_NAMES
from oskit.errors import UsageError
from oskit.evaluation.offline.result import now
from oskit.localnode import DockerNode, LocalNode
from oskit.localnode.artifacts import ARTIFACTS_MB, OPENSEARCH_VERSION
from oskit.localnode.distribution import distribution_folder
from oskit.localnode.service_account import node_account
from oskit.versions import installed_versions

if TYPE_CHECKING:
    from opensearchpy import OpenSearch

    from oskit.data.collection import Collection
    from oskit.encoder.model import NeuralSparseEncoder

NODE_NAME = "oskit-demo"
"""Of the node that ``--keep-node`` leaves running."""


@dataclass(frozen=True)
class DemoOptions:
    """What the demo is asked to do.

    Attributes:
        output: Folder for the collection, the archives and the report.
        formats: Which archives to make and to prove.
        connection: An OpenSearch that runs already; None starts one.
        docker: Start it as a container.
        keep_node: Leave it running, with indexes and models in it.
        configure_cluster: Change settings of ``connection``'s cluster that stand in the way.
        train: Train the encoder first, on a part of the questions; the others are asked.

    Raises:
        UsageError: Options that do not go together.
    """

    output: Path
    formats: tuple[Format, ...] = FORMATS
    connection: ConnectionSettings | None = None
    docker: bool = False
    keep_node: bool = False
    configure_cluster: bool = False
    train: bool = False

    def __post_init__(self) -> None:
        if self.connection is not None and (self.docker or self.keep_node):
            raise UsageError(
                "--docker and --keep-node are about a node that the demo starts, --url about one that runs",
                hint="Leave one of them out.",
            )


def run_demo(options: DemoOptions, tell: Tell = lambda _: None) -> DemoReport:
    """Run the main job.

    Whatever happens, a failure or Ctrl-C included, the node is stopped; in a cluster of yours the indexes and
    models that the demo made are deleted.

    Args:
        options: What to do.
        tell: Shows a line of progress.

    Raises:
        OskitError: A step failed. A disagreement is no failure of a step: the report tells it.
    """
    start = time.perf_counter()
    steps = Steps(tell)
    report = DemoReport(
        created=now(),
        machine=describe_machine(),
        load={},
        collection={},
    )
    folder, collection = demo_encoder(), None
    if options.connection is None and not options.docker and not distribution_folder(node_account()).is_dir():
        tell(
            f"This fetches OpenSearch {OPENSEARCH_VERSION} with its plugins on the way: {ARTIFACTS_MB} MB, "
            "1.7 GB on the disk, kept for the next time."
        )
    if options.train:
        folder, collection = train_demo(options.output / "training", report, steps)
    collection = _write_collection(options, collection or demo_collection(), report, steps)
    encoder = _load(folder, report, steps)
    archives = export_demo(encoder, collection, options.output / "archives", options.formats, report, steps)
    with ExitStack() as stack:
        client = _cluster(options, stack, report, steps)
        job = ClusterJob(client, collection, archives, report, steps)
        if options.connection is not None:
            stack.callback(job.clean_up)
        job.deploy(configure=options.connection is None or options.configure_cluster)
        for plan in plans(options.formats):
            job.prove(plan)
    report.steps = steps.done
    report.seconds = time.perf_counter() - start
    return report


def _write_collection(
    options: DemoOptions, collection: Collection, report: DemoReport, steps: Steps
) -> Collection:
    with steps.step("Make a collection of questions and answers") as step:
        folder = collection.write(options.output / "collection")
        documents = sum(1 for _ in collection.documents())
        step.result = f"{len(collection.queries)} queries and {documents} documents in {folder}"
    report.collection = {
        "name": collection.name,
        "queries": len(collection.queries),
        "documents": documents,
    }
    return collection


def _load(folder: Path, report: DemoReport, steps: Steps) -> NeuralSparseEncoder:
    with steps.step("Load the encoder") as step:
        from oskit.encoder.model import NeuralSparseEncoder

        encoder = NeuralSparseEncoder.from_pretrained(str(folder))
        found = encoder.load_report
        step.result = f"{found.layout}, {found.head} head, from the {TIER_NAMES[found.tier]}"
    report.load = found.to_dict()
    return encoder


def describe_machine() -> dict[str, Any]:
    """Cores, memory, Python and the versions that matter; nothing that tells whose machine it is."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    packages = ("oskit", "torch", "transformers", "sentence-transformers", "onnxruntime")
    return {
        "cores": len(os.sched_getaffinity(0)),
        "memory": f"{memory / 2**30:.0f} GiB",
        "python": platform.python_version(),
        **installed_versions(packages),
    }


def _cluster(options: DemoOptions, stack: ExitStack, report: DemoReport, steps: Steps) -> OpenSearch:
    """A client of the cluster; what was started for it is stopped when ``stack`` unwinds."""
    if options.connection is not None:
        client = connect(options.connection)
    else:
        with steps.step("Start OpenSearch") as step:
            name = NODE_NAME if options.keep_node else None
            kind = DockerNode if options.docker else LocalNode
            node = kind(name, progress=_say_once(steps.tell))
            if options.keep_node:
                node.start(detach=True)
            else:
                stack.enter_context(node)
            report.url = step.result = node.url
        client = connect(ConnectionSettings(url=node.url))
    report.machine["opensearch"] = kind_of(client).number
    return client


def _say_once(tell: Tell) -> Callable[[str, float, float | None], None]:
    """Progress in lines: each new thing that happens is said once."""
    last = ""

    def say(what: str, _done: float, _total: float | None) -> None:
        nonlocal last
        if what != last:
            last = what
            tell(f"    {what}")

    return say
