"""A folder in BEIR's layout as training data: its documents, and each judged query."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from oskit.data.collection import Collection
from oskit.data.documents import Document, FieldNames, Refusal
from oskit.data.duplicates import SeenTexts
from oskit.data.jsonl import read_jsonl
from oskit.training.data.records import Add, Example, Parsed
from oskit.training.recipe.sources import DataSource


def read_beir(folder: Path, source: DataSource, add: Add) -> Iterator[Parsed | Refusal]:
    """The documents, then each judged query as an example.

    Raises:
        DataError: A file is missing, or the queries or judgements are broken.
    """
    collection = Collection.open(folder, source.split)
    assert isinstance(collection.corpus, Path)
    wanted = {document for row in collection.qrels.values() for document in row} | collection.queries.keys()
    with closing(SeenTexts()) as texts:
        for item in read_jsonl(collection.corpus, FieldNames("_id")):
            yield _document(item, wanted, texts, add) if isinstance(item, Document) else item
        for query in collection.queries:
            yield _query(query, collection, source, texts, add)


def _document(item: Document, wanted: set[str], texts: SeenTexts, add: Add) -> Parsed | Refusal:
    passage = item.passage.strip()
    if item.id in wanted and not texts.add(item.id, content=passage.encode()):
        return Refusal(item.where, f"the id {item.id!r} came before")
    if passage:  # collections that people use have empty documents; they are never a positive, see below
        add(passage)
    return Parsed()


def _query(
    key: str, collection: Collection, source: DataSource, texts: SeenTexts, add: Add
) -> Parsed | Refusal:
    where = f"{source.path}: query {key!r}"
    query = collection.queries[key].strip()
    if not query:
        return Refusal(where, "its text is empty")
    positives, negatives, dropped = list[str](), list[str](), 0
    for document, grade in collection.qrels[key].items():
        text = texts.content_of(document)
        # A document with the query's id is the query itself (ArguAna): neither an answer nor a wrong one.
        if document == key or (grade < source.min_relevance and (grade > 0 or not source.judged_negatives)):
            continue
        if text:
            (negatives if grade < source.min_relevance else positives).append(text.decode())
        elif grade < source.min_relevance:
            dropped += 1
        else:
            problem = "not in the corpus" if text is None else "empty"
            return Refusal(where, f"its document {document!r} is {problem}")
    if not positives:
        return Parsed(dropped=dropped)
    itself = texts.content_of(key)
    rows = [add(text) for text in (*positives, *negatives)]
    example = Example(query, rows, len(positives), itself=add(itself.decode()) if itself else -1)
    return Parsed((example,), dropped)
