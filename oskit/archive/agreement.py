"""Whether two vectors are one encoder's, computed in two places."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from oskit.archive.manifest import Manifest

TOLERANCE = 1e-3
"""Largest difference of a weight between two builds of one runtime. Float32 sums in another order differ by
about 1e-5; a wrong graph differs by whole units."""

QUANTIZED_TOLERANCE = 0.14
"""Of a quantised archive: the length of two vectors' difference, relative to the longer one (a cosine of .99,
were both as long). An activation rounded to the other side changes all that follows: between ONNX Runtime
1.16.3 and 1.32 single weights differed by up to 0.56 in 40 texts of a 6-layer BERT, the vectors by 0.09."""


def is_quantized(manifest: Manifest | None) -> bool:
    """Whether two builds of one runtime give an archive's vectors nearly, not to each weight."""
    return manifest is not None and manifest.quantization is not None


def agree(wanted: Mapping[str, float], given: Mapping[str, float], *, quantized: bool, pruned: bool) -> bool:
    """Whether two vectors are one encoder's, computed by two builds of one runtime."""
    found = _differences(wanted, given, pruned=pruned).values()
    if not quantized:
        return max(found, default=0.0) <= TOLERANCE
    return math.hypot(*found) <= QUANTIZED_TOLERANCE * max(
        math.hypot(*side.values()) for side in (wanted, given)
    )


def largest_difference(
    wanted: Mapping[str, float], given: Mapping[str, float], *, pruned: bool = False
) -> tuple[str, float]:
    """The token whose weights differ most, and by how much; as :func:`_differences`, ``("", 0)`` if none."""
    found = _differences(wanted, given, pruned=pruned)
    return max(found.items(), key=lambda item: item[1], default=("", 0.0))


def _differences(
    wanted: Mapping[str, float], given: Mapping[str, float], *, pruned: bool
) -> dict[str, float]:
    """By how much the tokens' weights differ; a token that one side lacks weighs 0 there.

    Args:
        wanted: Token weights of one side.
        given: Token weights of the other.
        pruned: Forgive a token on one side only if it is the lightest there: rounding decides at the
            threshold.
    """
    lightest = {id(side): min(side.values(), default=0.0) for side in (wanted, given)}
    found = {}
    for token in {**wanted, **given}:
        a, b = wanted.get(token), given.get(token)
        if pruned and (a is None or b is None):
            side, weight = (wanted, a) if b is None else (given, b)
            if weight is not None and weight <= lightest[id(side)] + 1e-6:
                continue
        if difference := abs((a or 0.0) - (b or 0.0)):
            found[token] = difference
    return found
