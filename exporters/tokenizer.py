"""The query side of an inference-free encoder: ``tokenizer.json`` and ``idf.json``."""

from __future__ import annotations

from exporters.parts import EncoderParts
from oskit.archive.idf import MIN_QUERY_WEIGHT, idf_table
from oskit.errors import ExportError

MAX_QUERY_WEIGHT = 64.0
"""OpenSearch refuses a query in which a token weighs more."""


def query_table(parts: EncoderParts) -> dict[str, float]:
    """The content of ``idf.json``: every key of the vocabulary, or the server would take 1 for it.

    Tokens that the cluster never returns (special ones) have the weight 0. Of several ids with one key the
    largest weight counts. A token that weighs nothing has
    :data:`oskit.archive.idf.MIN_QUERY_WEIGHT`.

    Raises:
        ExportError: A weight is larger than OpenSearch takes.
    """
    assert parts.idf is not None
    table = idf_table(parts.idf, parts.vocabulary)
    heaviest = max(table, key=lambda key: table[key])
    if table[heaviest] > MAX_QUERY_WEIGHT:
        raise ExportError(
            f"the query weight of {heaviest!r} is {table[heaviest]:g}, OpenSearch takes "
            f"{MAX_QUERY_WEIGHT:g} at most",
            hint="Scale the query weights down; the ranking stays the same.",
        )
    returned = set(parts.vocabulary.keys)
    return {key: max(weight, MIN_QUERY_WEIGHT) if key in returned else 0.0 for key, weight in table.items()}
