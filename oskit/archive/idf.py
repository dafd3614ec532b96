"""The query side of an inference-free encoder: a weight for each token, as ``idf.json`` and as a vector."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from oskit.archive.safety import table_fault
from oskit.archive.vocabulary import Vocabulary
from oskit.data.atomic import write_whole
from oskit.errors import BrokenEncoderError, UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

MIN_QUERY_WEIGHT = 1e-6
"""Stands for 0: OpenSearch refuses a whole query if one of its tokens weighs 0 (seen on 3.6.0)."""

IDF_FILE = "idf.json"
"""``{token: weight}``, what OpenSearch's tokenizer archives carry."""

WEIGHTS_FILE = "query_token_weights.txt"
"""``token<TAB>weight`` a line, the same table in OpenSearch's older repositories."""


def find_idf(folder: Path) -> Path | None:
    """The table of query weights in a folder, if it has one; ``idf.json`` before the text form."""
    return next((folder / name for name in (IDF_FILE, WEIGHTS_FILE) if (folder / name).is_file()), None)


def read_idf(path: str | Path) -> dict[str, float]:
    """Read a table of query weights, in either form.

    Raises:
        BrokenEncoderError: It cannot be read, or holds something that is not a finite weight of at least 0.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        weights = json.loads(text) if path.suffix == ".json" else _parse_lines(path, text)
    except (OSError, ValueError) as error:
        raise BrokenEncoderError(f"{path} cannot be read: {error}", hint=_FORM) from error
    fault = table_fault(weights)
    if fault is not None:
        raise BrokenEncoderError(f"{path} {fault}", hint=_FORM)
    return {token: float(weight) for token, weight in weights.items()}


_FORM = "A table of query weights is a JSON object of tokens and their weights, finite numbers from 0."


def _parse_lines(path: Path, text: str) -> dict[str, float]:
    weights = {}
    # Not splitlines(): a token may be a character that it takes for the end of a line.
    for number, line in enumerate(text.split("\n"), start=1):
        token, tab, weight = line.rstrip("\r").rpartition("\t")
        if tab:
            weights[token] = float(weight)
        elif line.strip():
            raise BrokenEncoderError(f"{path}:{number} is not a token, a tab and a weight", hint=_FORM)
    return weights


def idf_vector(weights: Mapping[str, float], vocabulary: Vocabulary) -> NDArray[np.float32]:
    """The table over the full vocabulary: shape ``[vocabulary.size]``, special tokens 0.

    A token is found by its spelling (``##s``, ``▁the``), else by the cluster's key for it. A token that the
    table lacks weighs 0, as in sentence-transformers and in the authors' own code; entries of the table that
    are no tokens are left out, they must not end up on [UNK].
    """
    vector = np.zeros(vocabulary.size, dtype=np.float32)
    for token_id in range(vocabulary.size):
        weight = weights.get(vocabulary.token_of(token_id))
        if weight is None:
            weight = weights.get(vocabulary.key_of(token_id), 0.0)
        vector[token_id] = weight
    return vector * vocabulary.weight_mask()


def idf_table(vector: NDArray[np.float32], vocabulary: Vocabulary) -> dict[str, float]:
    """The vector as the cluster reads it: every key of the vocabulary, special tokens by name with 0.

    ML Commons gives a query token that is missing here the weight 1, so nothing may be missing. It looks a
    token up by its key, so of several ids with one key the largest weight counts.
    """
    special = vocabulary.special_ids
    table: dict[str, float] = {}
    for token_id in range(vocabulary.size):
        key = vocabulary.key_of(token_id) or vocabulary.token_of(token_id)
        if key:
            weight = 0.0 if token_id in special else float(vector[token_id])
            table[key] = max(table.get(key, 0.0), weight)
    return table


def merged_idf(vector: NDArray[np.float32], vocabulary: Vocabulary) -> NDArray[np.float32]:
    """The weights as the cluster uses them, ``[vocabulary.size]``: of ids with one key the largest counts."""
    mask = vocabulary.weight_mask()
    largest = np.zeros(vocabulary.size, dtype=np.float32)
    np.maximum.at(largest, vocabulary.first_ids, vector * mask)
    return largest[vocabulary.first_ids] * mask


def idf_json(table: Mapping[str, float]) -> str:
    """The content of ``idf.json``; ASCII only, because ML Commons reads it in its platform's encoding."""
    return json.dumps(table, ensure_ascii=True, separators=(",", ":"))


def write_idf(path: str | Path, vector: NDArray[np.float32], vocabulary: Vocabulary) -> None:
    """Write :func:`idf_table` of the vector as ``idf.json``, whole or not at all.

    Raises:
        UsageError: The file cannot be written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, idf_json(idf_table(vector, vocabulary)))
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}") from error
