"""A source of training data, as a recipe says it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from oskit.data.files import Format
from oskit.training.recipe.part import Part

Kind = Literal["pairs", "triples", "candidates", "beir", "documents"]
QueryKind = Literal["title", "heading", "span"]


class Place(Part):
    """Where records are: a file, a folder, or a data set of the Hugging Face Hub."""

    path: str | None = None
    """A JSONL, CSV, TSV or Parquet file, compressed or not; a folder in BEIR's layout; a data set that
    ``datasets`` saved; or ``-`` for stdin."""
    hub: str | None = None
    """A data set on the Hub, instead of a path."""
    subset: str | None = None
    """Name of a part of the Hub's data set (its configuration)."""
    revision: str | None = None
    """Branch, tag or commit of the Hub's data set."""
    split: str = "train"
    """Which part: of the Hub's data set, or the judgements ``qrels/<split>.tsv`` of a folder."""
    format: Format | None = None
    """Format of a file whose name does not tell it."""

    @model_validator(mode="before")
    @classmethod
    def _path_alone(cls, value: Any) -> Any:
        """A path may stand for the place."""
        return {"path": str(value)} if isinstance(value, (str, Path)) else value

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if (self.path is None) == (self.hub is None):
            raise ValueError("a source has either a path or the name of a data set on the Hub (hub)")
        if self.hub is None and (self.subset is not None or self.revision is not None):
            raise ValueError("subset and revision belong to a data set on the Hub (hub)")
        return self

    @property
    def name(self) -> str:
        """How messages call it."""
        if self.path is not None:
            return "<stdin>" if self.path == "-" else self.path
        subset = f"/{self.subset}" if self.subset else ""
        return f"{self.hub}{subset}[{self.split}]"


class Columns(Part):
    """Names of columns (or of keys), where they are others than the usual ones."""

    query: str | None = None
    """The query, or its id."""
    positive: str | None = None
    """The text that answers it, or a list of several; or ids."""
    negatives: str | tuple[str, ...] | None = None
    """Texts that do not: one column or more, each a text or a list of texts; or ids."""
    documents: str | None = None
    """Texts of which scores or labels tell how well they answer: one or a list; or ids."""
    scores: str | None = None
    """Scores: a number or a list. Of query, positive and negative, one number is the difference."""
    label: str | None = None
    """Relevance: 0 for what does not answer, or from ``min_relevance`` on for what does; one or a list."""
    text: str | None = None
    """The text, of documents."""
    title: str | None = None
    """Their title."""


class TextColumns(Part):
    """Names of columns of what is looked up by id, where they are others than the usual ones."""

    id: str | None = None
    """The id."""
    text: str | None = None
    """The text."""
    title: str | None = None
    """The title, which is put in front of the text."""


class TextsById(Place):
    """Texts that a source names by their ids."""

    columns: TextColumns = TextColumns()
    """Names of the columns, where they are odd."""


class Join(Part):
    """Where the texts are of a source that has ids."""

    queries: TextsById | None = None
    """The queries; of a folder in BEIR's layout, its ``queries.jsonl``."""
    corpus: TextsById | None = None
    """The documents; of a folder in BEIR's layout, its ``corpus.jsonl``."""
    scores: Place | None = None
    """Scores of query and document by their ids, if they are not in the source itself: records as
    ``{query_id, document_ids, scores}``, or a pickled dictionary of dictionaries (``.pkl``, ``.pkl.gz``)."""

    @model_validator(mode="after")
    def _something(self) -> Self:
        if self.queries is None and self.corpus is None:
            raise ValueError("give queries, corpus, or both")
        return self


class QuerySettings(Part):
    """How queries are made of documents."""

    kinds: tuple[QueryKind, ...] = ("title", "heading", "span")
    """What they are made from: the title, headings (Markdown's ``#``, or a short first line of a document
    without a title), spans (a sentence, or some words of a text that is one sentence)."""
    spans: PositiveInt = 1
    """Spans of one document at most."""
    headings: PositiveInt = 2
    """Headings of one document at most."""
    remove: float = Field(default=0.9, ge=0, le=1)
    """How often a query is taken out of the passage that it is to find."""
    min_length: PositiveInt = 8
    """Shortest query, in characters."""
    max_length: PositiveInt = 240
    """Longest query, in characters."""
    min_passage: PositiveInt = 40
    """Shortest passage, in characters; what would leave less is not taken out."""
    reach: PositiveInt = 2000
    """Characters from the beginning in which headings and spans are looked for; an encoder reads a few
    hundred tokens of a text."""
    max_documents: PositiveInt = 3
    """A query that more documents than this would have (such as "Introduction") is dropped."""

    @model_validator(mode="after")
    def _in_order(self) -> QuerySettings:
        if self.min_length > self.max_length:
            raise ValueError("min_length is larger than max_length")
        if not self.kinds:
            raise ValueError("kinds is empty: name title, heading or span")
        return self


class DataSource(Place):
    """One source of training data: a file, a folder, or a data set of the Hugging Face Hub."""

    kind: Kind | Literal["auto"] = "auto"
    """``pairs`` (query, positive), ``triples`` (and negatives), ``candidates`` (query, documents, and scores
    or labels), ``beir``, or ``documents`` that queries are made of; ``auto`` tells by the columns of the
    first record."""
    columns: Columns = Columns()
    """Names of the columns, where they are odd."""
    join: Join | None = None
    """Where the texts are, if the source has ids."""
    limit: PositiveInt | None = None
    """Take this many records that are right, the first ones, and no more; of a folder in BEIR's layout, so
    many queries that have an answer."""
    share: float = Field(default=1.0, gt=0, le=1)
    """Share of its queries that are trained on, drawn at random; all its texts stay to be found."""
    broken: Literal["error", "skip"] = "error"
    """Whether a record that is not right ends the reading, or is left out, counted and listed."""
    min_relevance: int = Field(default=1, ge=1)
    """Of judgements and labels: from which grade a document counts as a positive."""
    judged_negatives: bool = True
    """Of judgements and labels: whether documents with grade 0 become negatives."""
    queries: QuerySettings = QuerySettings()
    """How queries are made of documents."""

    @property
    def places(self) -> tuple[Place, ...]:
        """All that is read of it."""
        joined = () if self.join is None else (self.join.queries, self.join.corpus, self.join.scores)
        return (self, *(place for place in joined if place is not None))

    @model_validator(mode="after")
    def _no_beir_on_hub(self) -> Self:
        if self.hub is not None and self.kind == "beir":
            raise ValueError("a data set on the Hub cannot be of the kind beir; give its folder as path")
        if self.join is not None and self.kind in ("beir", "documents"):
            raise ValueError(f"{self.kind} has its texts itself; join is for a source with ids")
        return self
