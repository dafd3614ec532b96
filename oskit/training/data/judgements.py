"""A folder in BEIR's layout as training data: its documents, and each judged query."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from oskit.data.collection import Collection
from oskit.data.documents import Document, FieldNames, Refusal
from oskit.data.duplicates import SeenTexts
from oskit.data.jsonl import read_jsonl
from oskit.training.data.records import Example, Parsed
from oskit.training.recipe.sources import DataSource


def read_beir(folder: Path, source: DataSource) -> Iterator[Parsed | Refusal]:
    """The documents as passages, then each judged query as an example.

    Raises:
        DataError: A file is missing, or the queries or judgements are broken.
    """
    collection = Collection.open(folder, source.split)
    assert isinstance(collection.corpus, Path)
    wanted = {document for row in collection.qrels.values() for document in row} | collection.queries.keys()
    with closing(SeenTexts()) as texts:
        for item in read_jsonl(collection.corpus, FieldNames("_id")):
            yield _document(item, wanted, texts) if isinstance(item, Document) else item
        for query in collection.queries:
            yield _query(query, collection, source, texts)


def _document(item: Document, wanted: set[str], texts: SeenTexts) -> Parsed | Refusal:
    passage = item.passage.strip()
    if item.id in wanted and not texts.add(item.id, content=passage.encode()):
        return Refusal(item.where, f"the id {item.id!r} came before")
    # Collections that people use have empty documents; they are never a positive, see below.
    return Parsed(passages=(passage,) if passage else ())


def _query(key: str, collection: Collection, source: DataSource, texts: SeenTexts) -> Parsed | Refusal:
    where = f"{source.path}: query {key!r}"
    query = collection.queries[key].strip()
    if not query:
        return Refusal(where, "its text is empty")
    # A document with the query's id is the query itself (ArguAna): neither an answer nor a wrong one.
    itself = _text(key, texts) or ""
    positives, negatives = [], []
    for document, grade in collection.qrels[key].items():
        text = _text(document, texts)
        if document == key or (grade < source.min_relevance and (grade > 0 or not source.judged_negatives)):
            continue
        if grade < source.min_relevance:
            negatives.append(text or "")
        elif not text:
            return Refusal(
                where, f"its document {document!r} is {'not in the corpus' if text is None else 'empty'}"
            )
        else:
            positives.append(text)
    positives = list(dict.fromkeys(positives))
    unique = dict.fromkeys(negatives)
    kept = [text for text in unique if text and text not in positives]
    if not positives:
        return Parsed(dropped=len(unique) - len(kept))
    return Parsed(
        (Example(query, (*positives, *kept), len(positives), itself=itself),), dropped=len(unique) - len(kept)
    )


def _text(document: str, texts: SeenTexts) -> str | None:
    content = texts.content_of(document)
    return None if content is None else content.decode()
