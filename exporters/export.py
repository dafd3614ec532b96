"""Export: an encoder becomes archives, each of them proved before it is anyone's."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, vstack
from sentence_transformers import SparseEncoder

from exporters.archive import check_replaceable, file_stem, replacing, write_beside, write_zip
from exporters.exact_head import Feeds
from exporters.graph import BakedEncoder, check_bakeable, exportable
from exporters.int8 import Quantised, Vectors, quantise_model
from exporters.onnx import write_onnx
from exporters.parity import (
    Reference,
    compare_documents,
    compare_queries,
    compute_reference,
    reference_documents,
    reference_queries,
)
from exporters.parts import EncoderParts, take_apart
from exporters.quantize import quantise
from exporters.ranking import GENERATED, LEAST, RankingSample
from exporters.texts import PROBE_TEXTS, parity_texts
from exporters.tokenizer import query_table
from exporters.torchscript import write_torchscript
from oskit.archive.archive import Archive, open_archive
from oskit.archive.backends import ATTENTION_MASK, INPUT_IDS
from oskit.archive.batching import padded
from oskit.archive.encoder import ArchiveEncoder
from oskit.archive.idf import idf_json, merged_idf
from oskit.archive.manifest import (
    MANIFEST_NAME,
    Manifest,
    Parity,
    Probe,
    VocabularyRecord,
    origin,
    short_name,
)
from oskit.archive.token_weights import Prune
from oskit.encoder.loader.quiet import quiet_libraries
from oskit.errors import DataError, UntrainedEncoderError, UsageError
from oskit.versions import installed_versions

Format = Literal["torchscript", "onnx"]
Kind = Format | Literal["tokenizer"]
Quantization = Literal["int8"]
Head = Literal["auto", "plain"]
Progress = Callable[[str, int, int], None]
"""Called with what is being done, and how many of how many steps are done."""

_PROBE_WEIGHTS = 200
_REFERENCE_TEXTS = 100
"""Texts whose dense vectors are in memory at once."""

_SAMPLES = 24
"""Texts by which the form of the head is chosen."""

_PACKAGES = ("oskit", "torch", "transformers", "sentence-transformers", "tokenizers", "onnx", "onnxruntime")
_ACTIVATIONS = {"relu": "log1p(relu(x))", "log1p_relu": "log1p(log1p(relu(x)))"}


def export_encoder(
    encoder: SparseEncoder,
    output_dir: str | Path,
    *,
    formats: Sequence[Format] = ("torchscript", "onnx"),
    name: str | None = None,
    version: str = "1.0.0",
    quantize: Quantization | None = None,
    calibrate: str | Path | RankingSample | None = None,
    head: Head = "auto",
    prune: Prune | None = None,
    allow_untrained: bool = False,
    progress: Progress | None = None,
    also: Callable[[Sequence[Archive], Path], object] | None = None,
) -> list[Archive]:
    """Write an encoder as ML Commons archives.

    Each archive has a folder in ``output_dir`` (``torchscript``, ``onnx``, ``tokenizer`` for the queries of
    an inference-free encoder) with the zip, its register body and its manifest. Archives of an earlier export
    in the same place are replaced when the new ones are proved; after an error nothing has changed.

    Args:
        encoder: A :class:`oskit.encoder.model.NeuralSparseEncoder` or any ``SparseEncoder`` of Transformer
            (→ Dense) → SpladePooling, also behind a query table.
        output_dir: Folder to write to; it is made if needed.
        formats: What to write.
        name: Name to register by; by default that of the encoder's repository, folder or training run.
        version: Version to register by.
        quantize: ``"int8"`` for 8-bit integers, ONNX only. The archive is smaller and approximate; what it
            does to retrieval is measured, see :mod:`exporters.ranking`.
        calibrate: Texts to quantise by: any source that :func:`oskit.data.files.read_documents` reads, or a
            folder in BEIR's layout with judgements. Without it generated ones of the encoder's vocabulary.
        head: How an ONNX archive projects to the vocabulary: ``"auto"`` first in 8-bit integers, then in fp32
            what may be positive, where that pays (:mod:`exporters.exact_head`); ``"plain"`` all in fp32.
        prune: Pruning to bake into the graph.
        allow_untrained: Export even a randomly initialised projection.
        progress: Told of each step.
        also: Writes more folders, of the archives, into the one that it is given: they take the place of
            earlier ones together with the archives, or not at all.

    Returns:
        The archives, in the order of ``formats``, the tokenizer archive last.

    Raises:
        UntrainedEncoderError: The projection is random and ``allow_untrained`` is False.
        DataError: ``calibrate`` cannot be read, or holds too little.
        UsageError: The arguments do not go together, or ``output_dir`` holds something else in their place.
        ExportError: The encoder cannot be exported.
        ParityError: An archive does not compute what the encoder does.
    """
    _check_arguments(formats, name, version, quantize, head, calibrate)
    if isinstance(calibrate, str | Path):
        calibrate = RankingSample.read(calibrate)
    if prune is not None:
        check_bakeable(prune)
    parts = take_apart(encoder)
    if not parts.trained and not allow_untrained:
        raise UntrainedEncoderError(
            f"the projection of {parts.source.model} to its vocabulary is random: retrieval is worthless",
            hint="Train the encoder first; to export it all the same, use --allow-untrained.",
        )
    name = name or re.sub(_UNSAFE, "-", short_name(parts.source.model))
    kinds: list[Kind] = [*formats]
    if parts.idf is not None:
        kinds.append("tokenizer")
    begun: dict[str, int] = {}

    def report(step: str, detail: str = "") -> None:
        place = begun.setdefault(step, len(begun))
        if progress is not None:
            progress(f"{step}{detail and ': '}{detail}", place, 1 + 2 * len(kinds) + (quantize is not None))

    output_dir = Path(output_dir)
    for kind in kinds:
        check_replaceable(output_dir / kind)
    _refuse_other_export(output_dir, parts)
    with replacing(output_dir) as staging, quiet_libraries():
        report("running the encoder")
        reference = compute_reference(encoder, parts, parity_texts())
        if quantize is not None:
            calibrate = calibrate or RankingSample.generated(parts.vocabulary)
            _check_sample(calibrate, parts)
        job = _Job(encoder, parts, reference, name, version, calibrate, head, prune)
        paths = [_export(job, kind, staging, report) for kind in kinds]
        if also is not None:
            also([open_archive(path) for path in paths], staging)
    return [open_archive(output_dir / path.relative_to(staging)) for path in paths]


@dataclass(frozen=True)
class _Job:
    """What all archives of one export share."""

    encoder: SparseEncoder
    parts: EncoderParts
    reference: Reference
    name: str
    version: str
    sample: RankingSample | None
    head: Head
    prune: Prune | None

    @property
    def quantize(self) -> Quantization | None:
        return None if self.sample is None else "int8"


def _export(job: _Job, kind: Kind, staging: Path, report: Callable[..., None]) -> Path:
    """Write an archive, prove it, and write its register body and manifest beside it."""
    path = staging / kind / f"{file_stem(job.name, job.version, kind)}.zip"
    path.parent.mkdir()
    exact_head = False
    report(f"{kind}: writing")
    # Nothing inside is named after the encoder: the same encoder is the same archive by any name.
    model = path.with_name("model.pt" if kind == "torchscript" else "model.onnx")
    tokenizer = {"tokenizer.json": job.parts.tokenizer.to_str().encode()}
    quantised: Quantised | None = None
    if kind == "tokenizer":
        write_zip(path, {**tokenizer, "idf.json": idf_json(query_table(job.parts)).encode()})
    else:
        exact_head = _write_model(job, kind, model)
        if job.sample is not None:
            tell = partial(report, "measuring what 8-bit integers do to the ranking")
            quantised = _quantise(job, job.sample, model, tell)
        write_zip(path, {**tokenizer, model.name: model})
        model.unlink()
    report(f"{kind}: comparing {len(job.reference.texts)} texts with the encoder")
    opened = ArchiveEncoder.open(path)
    if kind == "tokenizer":
        parity = compare_queries(job.reference, opened)
    else:
        retrieval = None if quantised is None else quantised.retrieval
        parity = compare_documents(job.reference, opened, prune=job.prune, retrieval=retrieval)
    manifest = _manifest(job, opened, parity, quantised, exact_head=exact_head)
    named = replace(opened.archive, name=manifest.name, version=job.version, description=manifest.description)
    write_beside(named, manifest)
    return path


def _write_model(job: _Job, format_: Format, path: Path) -> bool:
    """Write the model; returns whether its head is the exact int8 one."""
    parts = job.parts
    with exportable(parts.modules) as modules:
        baked = BakedEncoder(
            modules,
            pooling=parts.pooling,
            activation=parts.activation,
            weight_mask=torch.from_numpy(parts.vocabulary.weight_mask()),
            around=parts.around,
            prune=job.prune,
        ).eval()
        if format_ == "torchscript":
            write_torchscript(baked, *parts.example(), path)
            return False
        fold = job.sample is not None
        samples = [] if fold or job.head == "plain" else _samples(job)
        return write_onnx(baked, *parts.example(), path, fold=fold, samples=samples)


def _samples(job: _Job) -> list[Feeds]:
    """Some of the reference's texts, one a batch as on the server."""
    texts = job.reference.texts[:: max(1, len(job.reference.texts) // _SAMPLES)]
    ids = [encoding.ids for encoding in job.parts.tokenizer.encode_batch(list(texts))]
    batches = [padded([row]) for row in ids if len(row) > job.parts.around]
    return [{INPUT_IDS: input_ids, ATTENTION_MASK: mask} for input_ids, mask in batches]


def _check_sample(sample: RankingSample, parts: EncoderParts) -> None:
    """Refuse texts that are all the same to the encoder: in a script that its vocabulary does not have."""
    special = parts.vocabulary.special_ids
    rows = [encoding.ids for encoding in parts.tokenizer.encode_batch(list(sample.documents))]
    different = {tuple(token for token in row if token not in special) for row in rows} - {()}
    if len(different) < LEAST:
        raise DataError(
            f"of {len(rows)} texts of {sample.source} the encoder can tell {len(different)} apart, "
            "too few to quantise by",
            hint="Give texts in a language that the encoder's vocabulary has.",
        )


def _quantise(job: _Job, sample: RankingSample, model: Path, tell: Callable[[str], None]) -> Quantised:
    """Replace the fp32 model by a quantised one.

    Ranking is compared without the pruning, which is asked for and costs what it costs.
    """
    import onnx

    # A query of an inference-free encoder does not go through the model.
    symmetric = job.parts.idf is None

    def rows(compute: Callable[..., NDArray[np.float32]], texts: Sequence[str]) -> csr_matrix:
        found = []
        for start in range(0, len(texts), _REFERENCE_TEXTS):
            tell(f"the encoder, {start} of {len(texts)} texts")
            part = texts[start : start + _REFERENCE_TEXTS]
            found.append(csr_matrix(compute(job.encoder, job.parts, part)))
        return vstack(found, format="csr")

    of_queries = rows(reference_documents if symmetric else reference_queries, sample.queries)
    expected = rows(reference_documents, sample.documents), of_queries
    tokenizer = job.parts.tokenizer.to_str().encode()
    with TemporaryDirectory(dir=model.parent) as folder:
        tried, packed = Path(folder) / model.name, Path(folder) / "candidate.zip"

        def encode(path: Path, documents: Sequence[str], queries: Sequence[str]) -> Vectors:
            write_zip(packed, {"tokenizer.json": tokenizer, model.name: path})
            opened = ArchiveEncoder.open(packed)
            found = opened.document_matrix(queries) if symmetric else of_queries[: len(queries)]
            return opened.document_matrix(documents), found

        plain = model
        if job.prune is not None:
            plain = Path(folder) / "unpruned.onnx"
            _write_model(replace(job, prune=None), "onnx", plain)
        quantised = quantise_model(plain, tried, sample, job.parts.tokenizer, expected, encode, tell)
    onnx.save(quantise(onnx.load(str(model)), quantised.sites), str(model))
    return quantised


def _manifest(
    job: _Job, opened: ArchiveEncoder, parity: Parity, quantised: Quantised | None, *, exact_head: bool
) -> Manifest:
    parts, archive = job.parts, opened.archive
    is_encoder = archive.kind == "encoder"
    tokenizer = f"{file_stem(job.name, job.version, 'tokenizer')}.zip"
    return Manifest(
        file=archive.path.name,
        sha256=archive.sha256,
        name=job.name if is_encoder else f"{job.name}-tokenizer",
        version=job.version,
        description=_description(job, archive),
        kind=archive.kind,
        model_format=archive.model_format,
        architecture=parts.architecture,
        source=parts.source,
        activation=parts.activation,
        pooling=parts.pooling,
        max_length=parts.max_length,
        prune=str(job.prune) if job.prune is not None and is_encoder else None,
        quantization=job.quantize if is_encoder else None,
        head="exact-int8" if exact_head else None,
        vocabulary=VocabularyRecord(
            size=parts.vocabulary.size,
            key_format=parts.vocabulary.key_format,
            directions=parts.directions,
        ),
        versions=installed_versions(_PACKAGES),
        parity=parity,
        probes=_probes(opened, is_encoder),
        notes=(*_notes(parts), *_quantised_notes(job, quantised)),
        query_archive=f"../tokenizer/{tokenizer}" if is_encoder and parts.idf is not None else None,
    )


def _probes(opened: ArchiveEncoder, is_encoder: bool) -> tuple[Probe, ...]:
    key = opened.vocabulary.key_format
    encode = opened.document_weights if is_encoder else opened.query_weights
    heaviest = [list(row.items())[:_PROBE_WEIGHTS] for row in encode(PROBE_TEXTS, key=key)]
    return tuple(
        Probe(text=text, weights={name: round(weight, 6) for name, weight in row})
        for text, row in zip(PROBE_TEXTS, heaviest, strict=True)
    )


def _notes(parts: EncoderParts) -> list[str]:
    notes = []
    vocabulary = parts.vocabulary
    if vocabulary.is_ambiguous:
        notes.append(
            f"{len(vocabulary.ambiguous_keys)} texts stand for several tokens each: use token ids as keys."
        )
    if parts.idf is not None and (shared := int((merged_idf(parts.idf, vocabulary) != parts.idf).sum())):
        notes.append(
            f"{shared} tokens have another query weight on the cluster: it looks weights up by a token's "
            "text, so tokens with one text share the largest."
        )
    if parts.directions:
        notes.append("Tokens are names of directions, of a dense model made sparse: they mean nothing.")
    if not parts.trained:
        notes.append("The projection to the vocabulary is random: retrieval with it is worthless.")
    return notes


def _quantised_notes(job: _Job, quantised: Quantised | None) -> list[str]:
    notes = []
    if quantised is not None and quantised.retrieval.source == GENERATED:
        notes.append(
            "Quantised by generated texts of the encoder's own vocabulary: --calibrate FILE takes texts like "
            "those that will be indexed, and tells what becomes of their ranking."
        )
    if quantised is not None and job.prune is not None:
        notes.append(
            f"What pruning by {job.prune} does to the ranking is not among the figures of quantising."
        )
    if quantised is not None and quantised.kept:
        notes.append(
            f"{quantised.share:.0%} of the multiplications are in 8-bit integers; {len(quantised.kept)} "
            "layers stay in fp32, for the ranking's sake."
        )
    return notes


def _description(job: _Job, archive: Archive) -> str:
    """One line of the characters that ML Commons takes."""
    parts = job.parts
    if archive.kind == "tokenizer":
        text = f"Tokenizer and query weights of the sparse encoder {job.name}"
    else:
        extras = [extra for extra in (job.quantize, job.prune and f"pruned by {job.prune}") if extra]
        text = ", ".join(
            [f"Neural sparse encoder, {parts.architecture}", _ACTIVATIONS[parts.activation], *extras]
        )
    return re.sub(_UNSAFE, "-", f"{text}. From {parts.source.model}, exported by oskit.")


_UNSAFE = r"[^\w\s.,!?():@\-/'\"]"
"""Characters that ML Commons refuses in names and descriptions (``StringUtils.SAFE_INPUT_PATTERN``)."""


def _check_arguments(
    formats: Sequence[str], name: str | None, version: str, quantize: str | None, head: str, calibrate: object
) -> None:
    def refuse(wrong: object, message: str, hint: str) -> None:
        if wrong:
            raise UsageError(message, hint=hint)

    strange = set(formats) - set(get_args(Format)) or len(set(formats)) < len(formats)
    named = f"cannot export the formats {', '.join(formats) or 'none'}"
    refuse(strange or not formats, named, "Use torchscript, onnx, or both.")
    refuse(quantize not in (None, *get_args(Quantization)), f"unknown quantisation {quantize!r}", "Use int8.")
    both = quantize and "torchscript" in formats
    refuse(both, "TorchScript archives cannot be quantised", "Quantise ONNX: --format onnx")
    refuse(head not in get_args(Head), f"unknown head {head!r}", f"Use {' or '.join(get_args(Head))}.")
    plain = head == "plain"
    refuse(plain and quantize, "a quantised archive has a quantised head", "Leave --head or --quantize out.")
    no_choice = plain and "onnx" not in formats
    refuse(no_choice, "a TorchScript archive always has the plain head", "Leave --head out.")
    for what, text in (("name", name), ("version", version)):
        refuse(
            text is not None and (not text.strip() or re.search(_UNSAFE, text)),
            f"ML Commons does not take the {what} {text!r}",
            "Use letters, digits, spaces and . , ! ? ( ) : @ - _ / ' \" only.",
        )
    refuse(
        calibrate is not None and quantize is None,
        "texts to calibrate with have no effect on an archive that is not quantised",
        "Add --quantize int8, or leave --calibrate out.",
    )


def _refuse_other_export(output_dir: Path, parts: EncoderParts) -> None:
    """Archives of two encoders in one folder would be taken for one export."""
    for path in sorted(output_dir.glob(f"*/{MANIFEST_NAME}")):
        model, architecture = origin(path)
        same = model is None or _place(model) == _place(parts.source.model)
        if not same or architecture not in (None, parts.architecture):
            raise UsageError(
                f"{path.parent} holds an archive of another encoder, {model} ({architecture})",
                hint="Choose another folder with -o, or remove it.",
            )


def _place(model: str) -> str:
    """The folder that ``model`` names, by whatever path; else the name of a repository."""
    path = Path(model)
    return str(path.resolve()) if path.exists() else model
