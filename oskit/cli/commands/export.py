"""``oskit export``: an encoder becomes ML Commons archives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from oskit.cli.loader import Loader, loader_options
from oskit.cli.options import output_options
from oskit.cli.output import Output

if TYPE_CHECKING:
    from rich.console import Console

    from oskit.archive.archive import Archive


@click.command("export")
@click.argument("model")
@click.option(
    "--format",
    "format_",
    type=click.Choice(["torchscript", "onnx", "both"]),
    help="What to write.  [both; onnx with --quantize]",
)
@click.option(
    "--quantize",
    type=click.Choice(["int8"]),
    help="8-bit integers: faster and smaller, approximate weights, the ranking kept. ONNX only.",
)
@click.option(
    "--calibrate",
    metavar="SOURCE",
    help="Texts to quantise by, and to measure what becomes of their ranking: documents in any format that "
    "ingest reads, or a folder with judgements (BEIR).  [generated texts]",
)
@click.option(
    "--head",
    type=click.Choice(["auto", "plain"]),
    default="auto",
    show_default=True,
    help="How an ONNX archive projects to the vocabulary: first in 8-bit integers, then in fp32 what may be "
    "positive, with fp32's own weights, where that pays; or all in fp32.",
)
@click.option(
    "--prune",
    metavar="TYPE:RATIO",
    help="Drop small weights in the graph: max_ratio:0.1 keeps weights of at least a tenth of the largest, "
    "top_k:200 the 200 largest, abs_value:0.05 those of at least 0.05.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(file_okay=False),
    default="export",
    show_default=True,
    help="Folder to write to.",
)
@click.option("--name", help="Name to register the model by.  [of the repository, folder or run]")
@click.option("--version", default="1.0.0", show_default=True, help="Version to register it by.")
@click.option(
    "--sagemaker",
    is_flag=True,
    help="Write OUTPUT/sagemaker too: what Amazon SageMaker runs, and the connector that reaches it.",
)
@click.option("--allow-untrained", is_flag=True, help="Export even an encoder whose projection is random.")
@loader_options
@output_options
def export(
    model: str,
    format_: str | None,
    quantize: Literal["int8"] | None,
    calibrate: str | None,
    head: Literal["auto", "plain"],
    prune: str | None,
    output: str,
    name: str | None,
    version: str,
    sagemaker: bool,
    allow_untrained: bool,
    loader: Loader,
    out: Output,
) -> None:
    """Pack MODEL (a folder or a Hub repository) into archives for ML Commons.

    Each archive is opened again, run, and compared with the encoder over more than 200 texts; if a weight
    differs by more than 0.0001, or if 8-bit integers cost ranking, nothing is written. For an inference-free
    encoder a tokenizer archive for the queries is written as well.

    \b
    Examples:
      oskit export ./my-encoder -o archives
      oskit export opensearch-project/opensearch-neural-sparse-encoding-doc-v3-distill --format onnx
      oskit export ./my-encoder --format onnx --sagemaker
      oskit export ./my-encoder --quantize int8 --calibrate corpus.jsonl --prune max_ratio:0.1
    """
    from oskit.archive.token_weights import Prune

    rule = Prune.parse(prune) if prune else None
    formats = _formats(format_, quantize)
    # A random projection is made up only where it may be exported. The parity is that of one machine's CPU.
    loader = replace(
        loader,
        fallback=loader.fallback and allow_untrained,
        allowance="with --allow-untrained",
        device=loader.device or "cpu",
    )
    also = _for_sagemaker(Path(output)) if sagemaker else None
    encoder = loader.load(model)
    from exporters import export_encoder

    with out.progress("Exporting", unit="steps") as bar:
        archives = export_encoder(
            encoder,
            Path(output),
            formats=formats,
            name=name,
            version=version,
            quantize=quantize,
            calibrate=calibrate,
            head=head,
            prune=rule,
            allow_untrained=allow_untrained,
            progress=bar.update,
            also=also,
        )
    if sagemaker:
        out.note(f"For SageMaker: {', '.join(map(str, sorted((Path(output) / 'sagemaker').iterdir())))}")
    for note in dict.fromkeys(
        note for archive in archives if archive.manifest for note in archive.manifest.notes
    ):
        out.warn(note)
    out.result([_record(archive) for archive in archives], lambda console: _print(console, archives))


def _for_sagemaker(output: Path) -> Callable[[Sequence[Archive], Path], object]:
    """What writes SageMaker's folder; raises UsageError where it would take away something else."""
    from exporters.archive import check_replaceable
    from oskit.cluster.models.sagemaker import FILES, FOLDER, write_bundle

    check_replaceable(output / FOLDER, FILES)
    return write_bundle


def _formats(format_: str | None, quantize: str | None) -> tuple[Literal["torchscript", "onnx"], ...]:
    if format_ == "torchscript":
        return ("torchscript",)
    return ("onnx",) if format_ == "onnx" or (format_ is None and quantize) else ("torchscript", "onnx")


def _record(archive: Archive) -> dict[str, Any]:
    assert archive.manifest is not None
    return {
        "path": archive.path,
        "kind": archive.kind,
        "model_format": archive.model_format,
        "size": archive.size,
        "sha256": archive.sha256,
        "max_length": archive.manifest.max_length,
        "parity": archive.manifest.parity,
        "notes": archive.manifest.notes,
    }


def _print(console: Console, archives: Sequence[Archive]) -> None:
    from rich.filesize import decimal

    from oskit.evaluation.reports.terminal import plain_table

    rows = []
    for archive in archives:
        assert archive.manifest is not None
        name, parity = f"{archive.path.parent.name}/{archive.path.name}", archive.manifest.parity
        allowed = "" if parity.tolerance is None else f" of {parity.tolerance:g}"
        difference = f"{parity.max_difference:.1e}{allowed}"
        rows.append([name, decimal(archive.size), difference, str(parity.texts)])
    folder = archives[0].path.parent.parent
    assert archives[0].manifest is not None
    longest = archives[0].manifest.max_length
    console.print(f"{folder}/", style="bold", soft_wrap=True)
    console.print(plain_table(["archive", "size", "largest difference", "texts"], rows))
    for archive in archives:
        if archive.manifest and (retrieval := archive.manifest.parity.retrieval):
            console.print(f"Quantised: {retrieval.told()}.", soft_wrap=True, highlight=False)
    console.print(f"Of a text the first {longest} tokens are encoded, special tokens included.")
    console.print(f"\nNext: oskit deploy {folder}", soft_wrap=True)
