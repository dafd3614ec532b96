"""Token weights of queries: an analyzer's, and what OpenSearch takes of any."""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from math import isfinite
from numbers import Real
from typing import TYPE_CHECKING, Any

from oskit.cluster.client.failures import cluster_errors
from oskit.errors import SearchError

if TYPE_CHECKING:
    from opensearchpy import OpenSearch

    from oskit.cluster.index.mapping import IndexInfo

MAX_TOKENS = 1024
"""Lucene's ``maxClauseCount``."""

MAX_WEIGHT = 64.0

IDS_OF_SPARSE_VECTOR = 65_536
"""Larger ones are folded into these, where an index is searched approximately."""


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


def checked(query: Mapping[str, Any], info: IndexInfo) -> dict[str, float]:
    """Weights that somebody gave, without those that are 0.

    Raises:
        SearchError: OpenSearch does not take them, or they cannot be keys of this index.
    """
    weights: dict[str, float] = {}
    for key, given in query.items():
        if isinstance(given, bool) or not isinstance(given, Real) or not 0 <= float(given) <= MAX_WEIGHT:
            raise SearchError(
                f"the query's token {key!r} weighs {given!r}",
                hint="OpenSearch takes query weights above 0 and up to 64; scores scale with them",
            )
        if (why := _no_key(key, info)) is not None:
            raise SearchError(
                f"the query has the token {key!r}, and {info.embedding_field!r} of {info.name!r} {why}",
                hint="Give ids in the place of texts" if "keyed" in why else None,
            )
        if _single(float(given)) > 0:
            weights[key] = float(given)
    if len(weights) > MAX_TOKENS:
        raise SearchError(
            f"the query has {len(weights):,} tokens, more tokens than a query may have ({MAX_TOKENS:,})",
            hint="Leave out the lightest",
        )
    return weights


def _no_key(key: object, info: IndexInfo) -> str | None:
    """Why something cannot be a token of an index."""
    if not isinstance(key, str):
        return "has texts as keys"
    if info.key == "id" and not (key.isascii() and key.isdecimal() and str(int(key)) == key):
        return "is keyed by token ids"
    if info.kind == "sparse_vector" and int(key) >= IDS_OF_SPARSE_VECTOR:
        return f"holds ids below {IDS_OF_SPARSE_VECTOR:,}, and takes larger ones for others"
    return None


def _single(weight: float) -> float:
    """The weight as a 32-bit float, which OpenSearch makes of it."""
    return float(struct.unpack(">f", struct.pack(">f", weight))[0])


def fitted(weights: Mapping[str, float], info: IndexInfo) -> tuple[dict[str, float], str | None]:
    """What OpenSearch takes of an encoder's weights, in the same proportions, and what was changed.

    Raises:
        SearchError: A weight is no number.
    """
    changes = []
    for key, weight in weights.items():
        if not isfinite(weight):
            raise SearchError(
                f"the encoder gave the query's token {key!r} the weight {weight}",
                hint="Its numbers overflow: compare it with the original (oskit verify), or try fp32",
            )
    possible = {key: weight for key, weight in weights.items() if _no_key(key, info) is None}
    if (out := len(weights) - len(possible)) > 0:
        changes.append(f"{out:,} of the query's tokens cannot be in {info.name!r}, and are not searched for")
    heaviest = max(possible.values(), default=0.0)
    factor = min(1.0, MAX_WEIGHT / heaviest) if heaviest > 0 else 1.0
    kept = {key: weight * factor for key, weight in possible.items() if _single(weight * factor) > 0}
    if len(kept) > MAX_TOKENS:
        changes.append(
            f"only the {MAX_TOKENS:,} heaviest of the query's {len(kept):,} tokens are searched for, as "
            "OpenSearch takes no more"
        )
        kept = dict(sorted(kept.items(), key=lambda item: -item[1])[:MAX_TOKENS])
    if factor < 1:
        changes.append(
            f"the query's weights, and so the scores, are multiplied by {factor:.4g}, as OpenSearch takes "
            "weights up to 64"
        )
    return kept, "; ".join(changes) or None
