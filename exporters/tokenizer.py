"""The query side of an inference-free encoder: ``tokenizer.json`` and ``idf.json``."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from oskit.archive.idf import MIN_QUERY_WEIGHT, idf_table
from oskit.archive.vocabulary import Vocabulary
from oskit.errors import ExportError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MAX_QUERY_WEIGHT = 64.0
"""OpenSearch refuses a query in which a token weighs more."""


def query_table(idf: NDArray[np.float32], vocabulary: Vocabulary) -> dict[str, float]:
    """The content of ``idf.json``: every key of the vocabulary, or the server would take 1 for it.

    Tokens that the cluster never returns (special ones) have the weight 0. Of several ids with one key the
    largest weight counts. A token that weighs nothing has
    :data:`oskit.archive.idf.MIN_QUERY_WEIGHT`.

    Raises:
        ExportError: A weight is larger than OpenSearch takes.
    """
    table = idf_table(idf, vocabulary)
    heaviest = max(table, key=lambda key: table[key])
    if table[heaviest] > MAX_QUERY_WEIGHT:
        raise ExportError(
            f"the query weight of {heaviest!r} is {table[heaviest]:g}, OpenSearch takes "
            f"{MAX_QUERY_WEIGHT:g} at most",
            hint="Scale the query weights down; the ranking stays the same.",
        )
    returned = set(vocabulary.keys)
    return {key: max(weight, MIN_QUERY_WEIGHT) if key in returned else 0.0 for key, weight in table.items()}


def table_json(table: dict[str, float]) -> bytes:
    """``idf.json``; ASCII only, because the server reads it in its platform's encoding."""
    return json.dumps(table, ensure_ascii=True, separators=(",", ":")).encode()
