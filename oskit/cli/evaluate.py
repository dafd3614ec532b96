"""``oskit evaluate``: measure retrieval quality without a cluster."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import click

from oskit.cli.options import output_options

if TYPE_CHECKING:
    from oskit.cli.output import Output


@click.command("evaluate", short_help="Measure retrieval quality without a cluster.")
@click.argument("collection", metavar="COLLECTION", type=click.Path(file_okay=False))
@click.argument("encoders", metavar="ENCODER...", nargs=-1, required=True)
@click.option("--split", default="test", show_default=True, help="Relevance judgements to use.")
@click.option("-k", "--depth", "k", type=click.IntRange(min=1), default=1000, show_default=True,
              help="Documents in each ranking.")  # fmt: skip
@click.option("--batch-size", type=click.IntRange(min=1), default=32, show_default=True,
              help="Texts that an encoder computes at once.")  # fmt: skip
@click.option("--report", metavar="DIR", help="Write evaluation.json and evaluation.html there.")
@output_options
def evaluate(
    collection: str,
    encoders: tuple[str, ...],
    split: str,
    k: int,
    batch_size: int,
    report: str | None,
    out: Output,
) -> None:
    """Measure retrieval quality without a cluster.

    Ranks the corpus of COLLECTION (a folder in BEIR's layout) by exact scores with each ENCODER, an archive
    or a model (folder or name; needs torch), and shows quality, active dimensions and FLOPS side by side.

    \b
    Examples:
      oskit evaluate faq out
      oskit evaluate faq ./my-encoder ./my-encoder-pruned --report figures
    """
    from oskit.data.collection import Collection
    from oskit.evaluation.encoders import open_encoder
    from oskit.evaluation.evaluate import evaluate as measure
    from oskit.evaluation.tables import print_evaluation

    opened = Collection.open(collection, split)
    openers = {name: partial(open_encoder, name) for name in encoders}
    found = measure(openers, opened, k=k, batch_size=batch_size, on_step=out.note)
    out.result(found.to_dict(), lambda console: print_evaluation(console, found))
    if report is not None:
        from oskit.evaluation.report import write_evaluation

        for path in write_evaluation(found, report):
            out.note(f"wrote {path}")
