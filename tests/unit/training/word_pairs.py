"""Training pairs that a tiny encoder can learn."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path


def write_pairs(path: Path, words: Sequence[str]) -> Path:
    """A document for every two words, and the two words as its query."""
    rows = [
        {"query": f"{one} {other}", "positive": f"the {one} and the {other}"}
        for one, other in itertools.combinations(words, 2)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
