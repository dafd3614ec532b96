"""What a table calls the encoders and models that are named on a command line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from oskit.errors import UsageError

_ALIKE = frozenset({"best", "model", "encoder", "archives", "onnx", "torchscript"})
"""What folders are called whatever is in them: the one around them tells more."""


def short_names(sources: Sequence[str]) -> list[str]:
    """What a table calls each source: its folder's, run's or file's name (``runs/quick/best``: ``quick``).

    Where two would have one name, as much of their paths as tells them apart.

    Raises:
        UsageError: A source comes twice.
    """
    if twice := [source for source in sources if sources.count(source) > 1]:
        raise UsageError(f"{twice[0]} is named twice", hint="Name each model once.")
    candidates = [_candidates(source) for source in sources]
    names = [longer.pop(0) for longer in candidates]
    while alike := [
        number for number, name in enumerate(names) if Counter(names)[name] > 1 and candidates[number]
    ]:
        for number in alike:
            names[number] = candidates[number].pop(0)
    return names


def _candidates(source: str) -> list[str]:
    """Names from the shortest to the whole path."""
    path = Path(source).absolute() if Path(source).exists() else Path(source)
    parts = [*path.parts[:-1], path.stem if path.suffix == ".zip" else path.name]
    telling = next((place for place in reversed(range(len(parts))) if parts[place] not in _ALIKE), 0)
    return [parts[telling], *("/".join(parts[start:]) for start in range(telling, 0, -1)), source]
