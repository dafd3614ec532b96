"""``oskit serve``: archives as an HTTP service, for ML Commons connectors and others."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from oskit.cli.options import output_options, runtime_options, with_options
from oskit.cli.output import Output
from oskit.errors import UsageError
from oskit.serve.renewal import VARIABLE, read_tokens

if TYPE_CHECKING:
    from rich.console import Console

    from oskit.archive.backends.runtime import Runtime
    from oskit.archive.encoder import ArchiveEncoder

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)

# fmt: off
_OPTIONS = [
    click.option("--host", default="127.0.0.1", show_default=True,
                 help="Where to listen; 0.0.0.0 is everywhere, and needs a token or client certificates."),
    click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True,
                 help="0 takes a free one."),
    click.option("--token-file", metavar="FILE", type=_FILE,
                 help=f"Clients need one of its lines as bearer token.  [{VARIABLE}, a token]"),
    click.option("--tls-cert", metavar="FILE", type=_FILE, help="The service's certificate, with its chain."),
    click.option("--tls-key", metavar="FILE", type=_FILE, help="Its key."),
    click.option("--client-ca", metavar="FILE", type=_FILE,
                 help="Clients need a certificate that this authority signed."),
    click.option("--query-archive", metavar="PATH", type=click.Path(exists=True),
                 help="Tokenizer archive for queries.  [the one beside the archive]"),
    click.option("--threads", metavar="N", type=click.IntRange(min=1),
                 help="Batches of documents that are computed at once, a core each.  [the cores]"),
    click.option("--max-texts", metavar="N", type=click.IntRange(min=1), default=1024, show_default=True,
                 help="Texts of one request."),
    click.option("--max-body", metavar="BYTES", type=click.IntRange(min=1), default=8_000_000,
                 show_default=True, help="Bytes of one request."),
    click.option("--max-queue", metavar="N", type=click.IntRange(min=1), default=4096, show_default=True,
                 help="Texts under way, of each archive and kind; then the answer is 429."),
    click.option("--answer-within", metavar="SECONDS", type=click.FloatRange(min=0, min_open=True),
                 default=60.0, show_default=True, help="What is not answered then is refused."),
    click.option("--sagemaker", is_flag=True,
                 help="As Amazon SageMaker starts containers: at 0.0.0.0:8080, where IAM asks who comes."),
    click.option("--drain", metavar="SECONDS", type=click.FloatRange(min=1), default=30.0, show_default=True,
                 help="What requests under way have left after SIGTERM."),
]
# fmt: on


@click.command("serve")
@click.argument("archives", nargs=-1, required=True, metavar="[NAME=]ARCHIVE...")
@functools.partial(with_options, options=_OPTIONS)
@runtime_options()
@output_options
def serve(
    archives: tuple[str, ...],
    query_archive: str | None,
    token_file: Path | None,
    threads: int | None,
    runtime: Runtime,
    out: Output,
    **options: Any,
) -> None:
    """Serve archives over HTTP.

    For clusters that reach models by connectors, and for other tools. Requests share batches, bounded by
    their tokens; queries have a way of their own and never wait behind documents. Without torch, but for
    TorchScript archives. Nothing is served before each archive has given the weights that its manifest knows.

    \b
    POST /v1/sparse         {"texts": [...], "sparse_embedding_format": "WORD"}  ->  [{"token": weight}, ...]
    POST /v1/sparse/query   the same for queries
    POST /embed_sparse      text-embeddings-inference's  {"inputs": ...}  ->  [[{"index", "value"}]]
    GET  /health /info /metrics

    With several archives the paths begin with /models/NAME. SIGTERM ends the service once what is under way
    is answered.

    \b
    Examples:
      oskit serve out
      oskit serve out --host 0.0.0.0 --token-file token.txt --tls-cert cert.pem --tls-key key.pem
      oskit serve english=out swedish=ut --port 9000 --precision bf16
    """
    from oskit.extras import require

    require("oskit serve", "serve")
    from oskit.serve.app import Limits, Service
    from oskit.serve.metrics import Metrics
    from oskit.serve.model import Model
    from oskit.serve.server import Address, Server, run, usable_cores

    if options["sagemaker"]:
        options |= {"host": "0.0.0.0", "port": 8080}  # noqa: S104 - of a container that only SageMaker reaches
    address = Address(
        options["host"],
        options["port"],
        options["tls_cert"],
        options["tls_key"],
        options["client_ca"],
        read_tokens(token_file),
        token_file,
        guarded=options["sagemaker"],
    )
    address.check()
    if query_archive is not None and len(archives) > 1:
        raise UsageError("--query-archive goes with a single archive")
    if runtime.precision == "auto":
        raise UsageError(
            "--precision auto measures on a job's texts, and a service has none", hint="Name one."
        )
    metrics = Metrics()
    limits = Limits(options["max_texts"], options["max_queue"], options["max_body"], options["answer_within"])
    cores = threads or usable_cores()
    bound = address.bind()
    models: dict[str, Model] = {}
    for given in archives:
        name, encoder, at_once = _opened(given, query_archive, runtime, cores)
        if name in models:
            raise UsageError(f"two archives are called {name}", hint="Name them: NAME=ARCHIVE")
        models[name] = Model(name, encoder, threads=at_once, limit=limits.queue, metrics=metrics)
        models[name].prove()
        if "queries" not in models[name].kinds:
            out.warn(f"{name} is inference-free without its tokenizer archive: it answers no queries")
    if address.in_clear:
        out.warn("texts and tokens go over the network unencrypted; --tls-cert and --tls-key encrypt them")
    url = address.url(bound)

    def ready() -> None:
        data = {"url": url, "models": {name: model.info() for name, model in models.items()}}
        out.result(data, lambda console: _print(console, url, models))

    service = Service(models, limits, metrics, address.tokens)
    cut_off = run(Server(service, address, drain=options["drain"], ready=ready), bound)
    out.note("Ended: everything was answered" if not cut_off else f"Ended: {cut_off} requests were cut off")
    click.get_current_context().exit(1 if cut_off else 0)


def _opened(given: str, query: str | None, runtime: Runtime, cores: int) -> tuple[str, ArchiveEncoder, int]:
    """Name, encoder, and how many batches it computes at once."""
    from dataclasses import replace

    from oskit.archive.archive import open_archive
    from oskit.archive.encoder import ArchiveEncoder

    name, _, path = given.partition("=") if "=" in given and not Path(given).exists() else ("", "", given)
    archive = open_archive(Path(path).expanduser(), first=runtime.format)
    name = name or archive.name
    if not re.fullmatch(r"[\w.-]+", name, re.ASCII):
        raise UsageError(f"{name!r} cannot be part of a path", hint="Name it: NAME=ARCHIVE")
    if archive.kind == "tokenizer":
        return name, ArchiveEncoder.open(archive), 1
    if runtime.backend == "auto" and archive.model_format == "ONNX" and runtime.precision != "bf16":
        runtime = replace(runtime, backend="onnxruntime")  # the others are measured on a job's texts
    # OpenVINO and a GPU take one batch at a time, and all there is for it; the others a core for each.
    alone = runtime.backend == "openvino" or runtime.precision == "bf16" or runtime.on_gpu
    encoder = ArchiveEncoder.open(archive, query=query, runtime=runtime, threads=cores if alone else 1)
    return name, encoder, 1 if alone else cores


def _print(console: Console, url: str, models: dict[str, Any]) -> None:
    for name, model in models.items():
        path = f"{url}/models/{name}" if len(models) > 1 else url
        what = " and ".join(model.kinds)
        runtime = f", on {model.encoder.runtime}" if model.encoder.runtime else ""
        console.print(f"Serving {name} ({what}{runtime}) at {path}/v1/sparse", markup=False, soft_wrap=True)
