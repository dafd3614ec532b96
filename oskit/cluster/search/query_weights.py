"""Token weights of queries: an analyzer's, and what OpenSearch takes of any."""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from math import isfinite
from typing import TYPE_CHECKING

from oskit.cluster.client.failures import cluster_errors
from oskit.errors import SearchError

if TYPE_CHECKING:
    from opensearchpy import OpenSearch

    from oskit.cluster.index.mapping import IndexInfo

MAX_TOKENS = 1024
"""Lucene's ``maxClauseCount``."""

MAX_WEIGHT = 64.0


def analyzer_weights(client: OpenSearch, info: IndexInfo, analyzer: str, text: str) -> dict[str, float]:
    """Token weights that an analyzer gives a text: the floats in its tokens' payloads.

    Keys are token texts. An analyzer does not tell its token ids.
    """
    body = {"analyzer": analyzer, "text": text, "explain": True, "attributes": ["payload"]}
    with cluster_errors(f"search the index {info.name!r}", SearchError):
        answer = client.indices.analyze(index=info.name, body=body)
    tokens = (answer["detail"].get("analyzer") or {}).get("tokens") or []
    return {token["token"]: _payload_weight(token.get("payload")) for token in tokens}


def _payload_weight(payload: str | None) -> float:
    """A 32-bit float, printed by Lucene as ``[40 de 2 1a]``; 1 for analyzers without weights."""
    if not payload:
        return 1.0
    octets = bytes(int(octet, 16) for octet in re.findall(r"[0-9a-f]+", payload))
    return float(struct.unpack(">f", octets)[0]) if len(octets) == 4 else 1.0


def checked(query: Mapping[str, float], info: IndexInfo) -> dict[str, float]:
    """Weights that somebody gave, without those that are 0.

    Raises:
        SearchError: OpenSearch does not take them, or they cannot be keys of this index.
    """
    weights = {key: float(weight) for key, weight in query.items() if weight != 0}
    for key, weight in weights.items():
        if not isfinite(weight) or not 0 < weight <= MAX_WEIGHT:
            raise SearchError(
                f"the query's token {key!r} weighs {weight:g}",
                hint="OpenSearch takes query weights above 0 and up to 64; scores scale with them",
            )
        if info.key == "id" and not key.isdecimal():
            raise SearchError(
                f"the query has the token {key!r}, and {info.embedding_field!r} of {info.name!r} is keyed by "
                "token ids",
                hint="Give ids in the place of texts",
            )
    if len(weights) > MAX_TOKENS:
        raise SearchError(
            f"the query has {len(weights):,} tokens, more tokens than a query may have ({MAX_TOKENS:,})",
            hint="Leave out the lightest",
        )
    return weights


def fitted(weights: Mapping[str, float]) -> tuple[dict[str, float], str | None]:
    """What OpenSearch takes of an encoder's weights, in the same proportions, and what was changed."""
    changes = []
    kept = dict(weights)
    if len(kept) > MAX_TOKENS:
        kept = dict(sorted(kept.items(), key=lambda item: -item[1])[:MAX_TOKENS])
        changes.append(
            f"only the {MAX_TOKENS:,} heaviest of the query's {len(weights):,} tokens are searched for, as "
            "OpenSearch takes no more"
        )
    heaviest = max(kept.values(), default=0.0)
    if heaviest > MAX_WEIGHT:
        factor = MAX_WEIGHT / heaviest
        kept = {key: weight * factor for key, weight in kept.items()}
        changes.append(
            f"the query's weights, and so the scores, are multiplied by {factor:.4g}, as OpenSearch takes "
            "weights up to 64"
        )
    return kept, "; ".join(changes) or None
