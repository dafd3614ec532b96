"""What `oskit ingest --ray` is told."""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING, Any

import click

from oskit.errors import UsageError

if TYPE_CHECKING:
    from oskit.cluster.client.connection import ConnectionSettings
    from oskit.cluster.ingest.ray_encoders import RayJob

# fmt: off
RAY_OPTIONS = [
    click.option("--ray", metavar="[ADDRESS]", is_flag=False, flag_value="auto",
                 help="Encode as a job on Ray, on many machines that have oskit and the archive under the "
                 "same path. At the end of the line, or as --ray=ADDRESS.  [auto: the Ray that runs here, or "
                 "one of this machine alone, as with local]"),
    click.option("--encoders", type=click.IntRange(1), metavar="N",
                 help="With --ray: processes that encode.  [one for each machine, or GPU]"),
]
# fmt: on


def check_ray_options(options: dict[str, Any]) -> None:
    """Refuse what has no effect with ``--ray``, or without it.

    Raises:
        UsageError: There is such an option, or the address is none.
        MissingDependencyError: Ray is not installed.
    """
    address = options["ray"]
    if address is None:
        if options["encoders"] is not None:
            raise UsageError("--encoders has no effect without --ray")
        return
    if not re.fullmatch(r"auto|local|(ray://)?[^\s/:@]+:[0-9]+", address):
        raise UsageError(
            f"{address!r} is no address of Ray's",
            hint="Write --ray=HOST:PORT, or --ray alone at the end of the line",
        )
    if options["dry_run"]:
        raise UsageError("--ray has no effect with --dry-run, which encodes nothing")
    if options["encode"] in ("cluster", "none") or options["archive"] is None:
        raise UsageError("--ray encodes documents, which needs an encoder",
                         hint="Give --archive DIR, and neither --encode cluster nor none")  # fmt: skip
    from oskit.extras import require

    require("--ray", "ray", ["ray"])


def ray_job(options: dict[str, Any], connection: ConnectionSettings) -> RayJob | None:
    """Where the documents are encoded, if on Ray."""
    if options["ray"] is None:
        return None
    from pathlib import Path

    from oskit.cluster.client.connection import connect
    from oskit.cluster.ingest.ray_encoders import RayJob
    from oskit.encoder.opening import open_encoder

    def absolute(name: str) -> str:
        path = Path(name).expanduser()
        return str(path.resolve()) if path.exists() else name

    runtime, query = options["runtime"], options["query_archive"]
    query = query and absolute(query)
    return RayJob(
        functools.partial(connect, connection),
        functools.partial(open_encoder, absolute(options["archive"]), runtime, query=query, fallback=False),
        options["ray"],
        options["encoders"],
        runtime.on_gpu,
    )
