"""A source of training data: what a recipe says of it, and what is told from its first record."""

from __future__ import annotations

from collections.abc import Collection as Names
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from oskit.data.collection import QRELS, find_corpus
from oskit.data.files import Format
from oskit.errors import DataError, UsageError
from oskit.training.recipe.part import Part

Kind = Literal["pairs", "triples", "beir", "documents"]
QueryKind = Literal["title", "heading", "span"]

QUERY_NAMES = ("query", "anchor", "question")
POSITIVE_NAMES = (
    *("positive", "pos", "positives", "positive_passages"),
    *("answer", "answers", "document", "passage", "text"),
)
NEGATIVE_NAMES = ("negative", "neg", "negatives", "negative_passages", "hard_negatives")
TEXT_NAMES = ("text", "passage", "contents", "content", "body")
TITLE_NAMES = ("title",)


class Columns(Part):
    """Names of columns (or of keys), where they are others than the usual ones."""

    query: str | None = None
    """The query, of pairs and triples."""
    positive: str | None = None
    """The text that answers it, or a list of several."""
    negatives: str | tuple[str, ...] | None = None
    """Texts that do not: one column or more, each a text or a list of texts."""
    text: str | None = None
    """The text, of documents."""
    title: str | None = None
    """Their title."""


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


class DataSource(Part):
    """One source of training data: a file, a folder, or a data set of the Hugging Face Hub."""

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
    kind: Kind | Literal["auto"] = "auto"
    """``triples`` (query, positive, negatives), ``pairs``, ``beir``, or ``documents`` that queries are made
    of; ``auto`` tells by the columns of the first record."""
    format: Format | None = None
    """Format of a file whose name does not tell it."""
    columns: Columns = Columns()
    """Names of the columns, where they are odd."""
    limit: PositiveInt | None = None
    """Take this many records that are right, and no more."""
    broken: Literal["error", "skip"] = "error"
    """Whether a record that is not right ends the reading, or is left out, counted and listed."""
    min_relevance: int = Field(default=1, ge=1)
    """Of judgements: from which grade a document counts as a positive."""
    judged_negatives: bool = True
    """Of judgements: whether documents that were judged 0 become negatives."""
    queries: QuerySettings = QuerySettings()
    """How queries are made of documents."""

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if (self.path is None) == (self.hub is None):
            raise ValueError("a source has either a path or the name of a data set on the Hub (hub)")
        if self.hub is None and (self.subset is not None or self.revision is not None):
            raise ValueError("subset and revision belong to a data set on the Hub (hub)")
        if self.hub is not None and self.kind == "beir":
            raise ValueError("a data set on the Hub cannot be of the kind beir; give its folder as path")
        return self

    @property
    def name(self) -> str:
        """How messages call it."""
        if self.path is not None:
            return "<stdin>" if self.path == "-" else self.path
        subset = f"/{self.subset}" if self.subset else ""
        return f"{self.hub}{subset}[{self.split}]"


def as_source(source: DataSource | str | Path) -> DataSource:
    """A source; a plain path stands for itself."""
    return source if isinstance(source, DataSource) else DataSource(path=str(source))


def is_saved_dataset(path: Path) -> bool:
    """Whether it is a folder that ``Dataset.save_to_disk`` wrote."""
    return (path / "state.json").is_file() and (path / "dataset_info.json").is_file()


def kind_of_folder(path: Path) -> Kind:
    """The kind of a folder in BEIR's layout: with judgements, or documents alone.

    Raises:
        DataError: It has no corpus.
    """
    if find_corpus(path) is None:
        raise DataError(
            f"the folder {path} has no corpus.jsonl and is no saved data set",
            hint="Name the files themselves",
        )
    return "beir" if (path / QRELS).is_dir() else "documents"


class Layout:
    """Which columns of a source hold what, told from the names of its first record.

    Attributes:
        kind: ``pairs``, ``triples`` or ``documents``.
        query: Column of the query; empty for documents.
        positive: Column of the positive; empty for documents.
        negatives: Columns of negatives.
        text: Column of the text, for documents.
        title: Column of their title.
    """

    def __init__(self, source: DataSource, names: Names[str]) -> None:
        columns = source.columns
        self.query = columns.query or _first(QUERY_NAMES, names)
        self.positive = columns.positive or _first(POSITIVE_NAMES, names)
        given = columns.negatives
        self._given = (given,) if isinstance(given, str) else given
        self.negatives = self.negatives_among(names)
        self.text = columns.text or _first(TEXT_NAMES, names)
        self.title = columns.title or _first(TITLE_NAMES, names)
        self.kind: Kind = _told(self, source) if source.kind == "auto" else source.kind
        self._check(source, names)

    def _check(self, source: DataSource, names: Names[str]) -> None:
        if self.kind == "documents":
            needed = {"text": self.text}
        else:
            needed = {"query": self.query, "positive": self.positive}
            if self.kind == "triples":
                needed["negatives"] = next(iter(self.negatives), "")
        missing = [role for role, column in needed.items() if not column or column not in names]
        if missing:
            known = ", ".join(repr(name) for name in list(names)[:12]) or "none"
            what = "training data" if source.kind == "auto" else self.kind
            raise DataError(
                f"{source.name} has no column for the {missing[0]} of {what}, but {known}",
                hint=f"Name it: columns: {{{missing[0]}: ...}}",
            )

    def negatives_among(self, names: Names[str]) -> tuple[str, ...]:
        """The columns of negatives that a record has; records of JSONL need not be alike."""
        if self._given is not None:
            return tuple(name for name in self._given if name in names)
        return _negatives(names)

    def __str__(self) -> str:
        if self.kind == "documents":
            return f"documents (text: {self.text}" + (f", title: {self.title})" if self.title else ")")
        negatives = f", negatives: {', '.join(self.negatives)}" if self.kind == "triples" else ""
        return f"{self.kind} (query: {self.query}, positive: {self.positive}{negatives})"


def wanted_columns(source: DataSource) -> list[str]:
    """Columns that tell how a CSV file is separated: the named ones, else all usual ones."""
    given: dict[str, Any] = source.columns.model_dump(exclude_none=True)
    named: list[str] = []
    for value in given.values():
        named += [value] if isinstance(value, str) else value
    return named or [*QUERY_NAMES, *POSITIVE_NAMES, *NEGATIVE_NAMES, *TEXT_NAMES]


def check_path(source: DataSource) -> Path | None:
    """The source's path, None for stdin and for the Hub.

    Raises:
        DataError: There is nothing.
        UsageError: The kind needs a folder and it is a file.
    """
    if source.path is None or source.path == "-":
        return None
    path = Path(source.path).expanduser()
    if not path.exists():
        raise DataError(f"no such file or folder: {path}")
    if source.kind == "beir" and not path.is_dir():
        raise UsageError(f"{path} is a file; the kind beir needs a folder with corpus.jsonl and qrels/")
    return path


def _first(candidates: tuple[str, ...], names: Names[str]) -> str:
    return next((name for name in candidates if name in names), "")


def _negatives(names: Names[str]) -> tuple[str, ...]:
    """The plain name, and the numbered ones in their order: negative, negative_1, negative_2, …"""
    numbered = []
    for name in names:
        stem, _, number = name.rpartition("_")
        if stem in NEGATIVE_NAMES and number.isdecimal():
            numbered.append((int(number), name))
    plain = [name for name in NEGATIVE_NAMES if name in names]
    return (*plain, *(name for _, name in sorted(numbered)))


def _told(layout: Layout, source: DataSource) -> Kind:
    if layout.query and layout.positive:
        return "triples" if layout.negatives else "pairs"
    if layout.text and not layout.query:
        return "documents"
    # Named as what is missing least; the check says what that is.
    return "pairs" if layout.query or source.columns.query else "documents"
