"""The demo's exports: the encoder in each format, and the query side of an inference-free one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oskit.demo.plan import Format
from oskit.demo.result import DemoReport
from oskit.demo.steps import Steps

if TYPE_CHECKING:
    from oskit.archive.archive import Archive
    from oskit.data.collection import Collection
    from oskit.encoder.model import NeuralSparseEncoder


NAME = "oskit-demo"
"""Name of the archives, and what the names of the models begin with."""


@dataclass(frozen=True)
class DemoArchives:
    """What the demo exported.

    Attributes:
        encoders: The encoder, in each format.
        tokenizer: The query side of the inference-free encoder; its documents go through the same graph.
    """

    encoders: Mapping[Format, Archive]
    tokenizer: Archive

    def all(self) -> list[Archive]:
        """Every archive once."""
        return [*self.encoders.values(), self.tokenizer]


def export_demo(
    encoder: NeuralSparseEncoder,
    collection: Collection,
    folder: Path,
    formats: Sequence[Format],
    report: DemoReport,
    steps: Steps,
) -> DemoArchives:
    """Export the encoder, and an inference-free one made of it and the corpus's IDF.

    Raises:
        ExportError: It cannot be exported.
        ParityError: An archive does not compute what the encoder does.
    """
    from exporters import export_encoder
    from oskit.encoder.document_frequencies import corpus_idf
    from oskit.encoder.surgery.inference_free import inference_free

    with steps.step(f"Export it as {' and '.join(formats)}") as step:
        made = export_encoder(encoder, folder / "symmetric", formats=formats, name=NAME)
        step.result = ", ".join(_describe(archive) for archive in made)
    with steps.step("Make an inference-free encoder with the corpus's IDF, and export it") as step:
        passages = (document.passage for document in collection.documents())
        idf = corpus_idf(passages, encoder.vocabulary, max_length=encoder.max_length)
        other = inference_free(encoder, idf)
        archives = export_encoder(other, folder / "inference-free", formats=formats[:1], name=NAME)
        tokenizer = next(archive for archive in archives if archive.kind == "tokenizer")
        step.result = _describe(tokenizer)
    found = DemoArchives(dict(zip(formats, made, strict=True)), tokenizer)
    report.archives = [_record(archive) for archive in found.all()]
    return found


def _describe(archive: Archive) -> str:
    recorded = _record(archive)
    return (
        f"{recorded['file']} {recorded['bytes'] / 1e6:.1f} MB, parity {recorded['parity_max_difference']:.1e}"
    )


def _record(archive: Archive) -> dict[str, Any]:
    assert archive.manifest is not None, "an exported archive has a manifest"
    parity = archive.manifest.parity
    return {
        "name": archive.name,
        "kind": archive.kind,
        "model_format": archive.model_format,
        "file": archive.path.name,
        "bytes": archive.size,
        "sha256": archive.sha256,
        "parity_texts": parity.texts,
        "parity_max_difference": parity.max_difference,
    }
