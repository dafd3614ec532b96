"""NanoBEIR: thirteen BEIR collections cut to 50 queries and a few thousand documents, from the Hub.

The layout is that of ``sentence-transformers/NanoBEIR-en``: the configurations ``corpus``, ``queries`` and
``qrels``, each with a split ``Nano<Name>`` for each collection. Translations of it have the same.
"""

from __future__ import annotations

from typing import Any

from oskit.data.collection import Collection
from oskit.data.documents import Document
from oskit.errors import DataError, UsageError, first_line
from oskit.extras import require

SOURCE = "sentence-transformers/NanoBEIR-en"

_NAMES = (
    *("ArguAna", "ClimateFEVER", "DBPedia", "FEVER", "FiQA2018", "HotpotQA", "MSMARCO", "NFCorpus", "NQ"),
    *("QuoraRetrieval", "SCIDOCS", "SciFact", "Touche2020"),
)
SPLITS = {name.lower(): f"Nano{name}" for name in _NAMES}
"""The split of each name."""


def nano_beir_names(text: str) -> list[str]:
    """The names in ``scifact,nfcorpus``; all thirteen for ``all``.

    Raises:
        UsageError: A name is unknown.
    """
    if text.strip().lower() == "all":
        return list(SPLITS)
    names = [name.strip().lower().removeprefix("nano") for name in text.split(",") if name.strip()]
    for name in names:
        if name not in SPLITS:
            raise UsageError(f"NanoBEIR has no {name!r}", hint=f"It has {', '.join(SPLITS)}, or all.")
    if not names:
        raise UsageError("no NanoBEIR collection is named", hint=f"Name some of {', '.join(SPLITS)}, or all.")
    return names


def load_nano_beir(name: str, source: str = SOURCE) -> Collection:
    """Download a collection, or find it in the Hub's cache.

    Args:
        name: A key of :data:`SPLITS`.
        source: A repository of this layout on the Hub, or a folder.

    Raises:
        DataError: The Hub cannot be reached, or the data set is of another layout.
        MissingDependencyError: ``datasets`` is not installed.
    """
    split = SPLITS[name]
    corpus = _rows(source, "corpus", split, ("_id", "text"))
    queries = _rows(source, "queries", split, ("_id", "text"))
    qrels: dict[str, dict[str, int]] = {}
    for row in _rows(source, "qrels", split, ("query-id", "corpus-id")):
        # Without grades every listed document is relevant.
        qrels.setdefault(row["query-id"], {})[row["corpus-id"]] = int(row.get("score", 1))
    # Empty texts are left out, as sentence-transformers' NanoBEIREvaluator does.
    documents = tuple(
        Document(id=row["_id"], title=row.get("title") or "", text=row["text"])
        for row in corpus
        if row["text"]
    )
    texts = {row["_id"]: row["text"] for row in queries if row["text"] and row["_id"] in qrels}
    return Collection(texts, {query: qrels[query] for query in texts}, documents, split="test", name=split)


def _rows(source: str, part: str, split: str, columns: tuple[str, ...]) -> list[dict[str, Any]]:
    require("NanoBEIR", "train", ["datasets"])
    import datasets

    try:
        table = datasets.load_dataset(source, part, split=split)
    except Exception as error:  # the Hub's, the network's or the builder's: there is no common base
        raise DataError(
            f"{part} of {split} cannot be loaded from {source}: {first_line(error)}",
            hint="NanoBEIR comes from the Hugging Face Hub: check the network, HF_HUB_OFFLINE and the name.",
        ) from error
    if missing := [column for column in columns if column not in table.column_names]:
        raise DataError(
            f"{part} of {split} in {source} lacks the column {missing[0]!r}",
            hint=f"A data set in the layout of {SOURCE} is needed.",
        )
    return [dict(row) for row in table]
