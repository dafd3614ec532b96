"""``oskit evaluate``: measure retrieval quality without a cluster."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from oskit.cli.options import output_options, report_option, runtime_options

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from oskit.archive.backends.runtime import Runtime
    from oskit.cli.output import Output
    from oskit.data.collection import Collection
    from oskit.evaluation.offline.bm25 import Bm25Settings
    from oskit.evaluation.offline.result import EvaluationReport


@click.command("evaluate", short_help="Measure retrieval quality without a cluster.")
@click.argument("arguments", metavar="COLLECTION [ENCODER]...", nargs=-1)
@click.option("--bm25", is_flag=True, help="Add a row for BM25, as OpenSearch computes it.")
@click.option("--bm25-k1", "k1", metavar="K1", type=float,
              help="Its saturation of the term frequency.  [1.2]")  # fmt: skip
@click.option("--bm25-b", "b", metavar="B", type=float, help="Its normalisation by length.  [0.75]")
@click.option("--bm25-language", "language", metavar="LANGUAGE",
              help="Its stop words and stemmer, by the name of OpenSearch's analyzer, such as german; none: "
                   "words as they are; auto: the language of most documents.  [auto]")  # fmt: skip
@click.option("--dense", metavar="MODEL", multiple=True,
              help="Add a row for a sentence-transformers model; may come several times.")  # fmt: skip
@click.option("--dense-query-prompt", metavar="TEXT",
              help="Put before queries of dense models, such as 'query: '.  [the model's own]")  # fmt: skip
@click.option("--dense-document-prompt", metavar="TEXT",
              help="Put before documents.  [the model's own]")  # fmt: skip
@click.option("--label", "labels", metavar="NAME", multiple=True,
              help="What a row is called: once for each ENCODER, then each --dense MODEL.  [the folder's "
                   "or the run's name]")  # fmt: skip
@click.option("--baseline", metavar="NAME",
              help="Compare every row with this one (a row's name, ENCODER, MODEL, BM25) by "
                   "bootstrap.")  # fmt: skip
@click.option("--resamples", type=click.IntRange(min=100), default=10_000, show_default=True,
              help="Bootstrap samples.")  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True, help="Of the bootstrap samples.")
@click.option("--prune-levels", metavar="LEVELS",
              help="Also measure each ENCODER with pruned documents: ratios of the largest weight "
                   "(0.05,0.1,0.2) or rules (top_k:100).")  # fmt: skip
@click.option("--chunk", metavar="CHUNKS",
              help="Also measure each ENCODER with documents in chunks, such as tokens:384,overlap:64; a "
                   "document counts by its best chunk.")  # fmt: skip
@click.option("--nano-beir", metavar="NAMES",
              help="Instead of COLLECTION: small BEIR collections from the Hub, such as scifact,nfcorpus, "
                   "or all.")  # fmt: skip
@click.option("--nano-beir-source", metavar="REPO", default="sentence-transformers/NanoBEIR-en",
              show_default=True, help="Their data set, such as one in another language.")  # fmt: skip
@click.option("--split", default="test", show_default=True, help="Relevance judgements to use.")
@click.option("-k", "--depth", "k", type=click.IntRange(min=1), default=1000, show_default=True,
              help="Documents in each ranking.")  # fmt: skip
@runtime_options()
@report_option("evaluation")
@output_options
def evaluate(
    arguments: tuple[str, ...],
    bm25: bool,
    k1: float | None,
    b: float | None,
    language: str | None,
    dense: tuple[str, ...],
    dense_query_prompt: str | None,
    dense_document_prompt: str | None,
    labels: tuple[str, ...],
    baseline: str | None,
    resamples: int,
    seed: int,
    prune_levels: str | None,
    chunk: str | None,
    nano_beir: str | None,
    nano_beir_source: str,
    split: str,
    k: int,
    runtime: Runtime,
    report: str | None,
    out: Output,
) -> None:
    """Measure retrieval quality without a cluster.

    Ranks the corpus of COLLECTION (a folder in BEIR's layout) by exact scores with each ENCODER, an archive
    or a model (folder or name; needs torch), and shows quality, active dimensions, FLOPS and the size of the
    index side by side; on request beside BM25 and dense models, with significance, and at pruning levels.

    \b
    Examples:
      oskit evaluate faq out
      oskit evaluate faq ./my-encoder --bm25 --dense intfloat/e5-small-v2 --baseline BM25
      oskit evaluate faq runs/quick/best runs/strong/best --label fast --label good --baseline fast
      oskit evaluate manuals ./my-encoder --chunk tokens:384,overlap:64 --bm25 --baseline my-encoder
      oskit evaluate faq ./my-encoder --prune-levels 0.05,0.1,0.2 --report figures
      oskit evaluate --nano-beir scifact,nfcorpus ./my-encoder --bm25
    """
    from oskit.data.chunks import Chunking
    from oskit.encoder.opening import open_encoder
    from oskit.errors import UsageError
    from oskit.evaluation.offline.dense import DenseModel
    from oskit.evaluation.offline.evaluate import evaluate as measure
    from oskit.evaluation.offline.pruning_levels import parse_levels

    collections, encoders = _sources(arguments, nano_beir, nano_beir_source, split)
    if not encoders:
        runtime.refuse_unused("without an ENCODER")
        for option, value in (("--chunk", chunk), ("--prune-levels", prune_levels)):
            if value is not None:
                raise UsageError(f"{option} needs an ENCODER", hint="Name one, or leave the option out.")
    names = _names([*encoders, *dense], labels)
    settings = _bm25(bm25, {"k1": k1, "b": b, "language": language})
    chunking = Chunking.parse(chunk) if chunk is not None else None
    levels = parse_levels(prune_levels) if prune_levels is not None else []
    open_dense = partial(
        DenseModel,
        query_prompt=dense_query_prompt,
        document_prompt=dense_document_prompt,
    )
    reports = [
        measure(
            {names[source]: partial(open_encoder, source, runtime, notify=out.note) for source in encoders},
            collection,
            k=k,
            bm25=settings,
            dense={names[source]: partial(open_dense, source) for source in dense},
            baseline=names.get(str(baseline), baseline),
            prune_levels=levels,
            chunking=chunking,
            resamples=resamples,
            seed=seed,
            on_step=out.note,
        )
        for collection in collections
    ]
    _show(reports, out)
    for found in reports:
        for warning in found.warnings:
            out.warn(warning)
    if report is not None:
        _write(reports, report, out)


def _sources(
    arguments: Sequence[str], nano_beir: str | None, repository: str, split: str
) -> tuple[Iterator[Collection], list[str]]:
    """The collections, opened one by one, and the encoders."""
    from oskit.data.collection import Collection, find_corpus
    from oskit.errors import UsageError

    if nano_beir is not None:
        from oskit.evaluation.offline.nano_beir import load_nano_beir, nano_beir_names

        names = nano_beir_names(nano_beir)
        if folders := [name for name in arguments if find_corpus(Path(name)) is not None]:
            raise UsageError(f"{folders[0]} is a COLLECTION", hint="Leave it out, or --nano-beir.")
        return (load_nano_beir(name, repository) for name in names), list(arguments)
    if not arguments:
        raise UsageError("no COLLECTION is given", hint="Name a folder in BEIR's layout, or use --nano-beir.")
    return iter([Collection.open(arguments[0], split)]), list(arguments[1:])


def _bm25(wanted: bool, options: dict[str, Any]) -> Bm25Settings | None:
    """Its settings, if there is to be a row of it."""
    from oskit.errors import UsageError
    from oskit.evaluation.offline.bm25 import Bm25Settings

    given = {name: value for name, value in options.items() if value is not None}
    if wanted:
        return Bm25Settings(**given | ({"language": None} if given.get("language") == "none" else {}))
    if given:
        raise UsageError(f"--bm25-{next(iter(given))} is for BM25", hint="Add --bm25, or leave it out.")
    return None


def _names(sources: Sequence[str], labels: Sequence[str]) -> dict[str, str]:
    """The name of each source's row."""
    from oskit.errors import UsageError
    from oskit.evaluation.offline.names import short_names

    names = short_names(sources)
    if labels and len(labels) != len(sources):
        raise UsageError(
            f"{len(labels)} labels for {len(sources)} rows",
            hint="Give --label once for each ENCODER, then each --dense MODEL; BM25 has its own.",
        )
    if twice := [label for label in labels if labels.count(label) > 1]:
        raise UsageError(f"two rows would be called {twice[0]!r}", hint="Give each its own --label.")
    return dict(zip(sources, labels or names, strict=True))


def _show(reports: Sequence[EvaluationReport], out: Output) -> None:
    from oskit.evaluation.reports.evaluation import means_table, several_dict
    from oskit.evaluation.reports.terminal import print_evaluation, print_table

    def show(console: Any) -> None:
        for report in reports:
            print_evaluation(console, report)
        if len(reports) > 1:
            print_table(console, means_table(reports))

    out.result(reports[0].to_dict() if len(reports) == 1 else several_dict(reports), show)


def _write(reports: Sequence[EvaluationReport], folder: str, out: Output) -> None:
    from oskit.evaluation.reports.evaluation import write_evaluation

    for report in reports:
        name = "evaluation" if len(reports) == 1 else f"evaluation-{report.collection['name']}"
        out.wrote(write_evaluation(report, folder, name))
