"""Which columns of a source hold what, told from its first record."""

from __future__ import annotations

from collections.abc import Collection as Names
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from oskit.errors import DataError
from oskit.training.recipe.sources import DataSource, Kind

QUERY_NAMES = ("query", "anchor", "question", "query_text", "sentence1")
QUERY_ID_NAMES = ("query_id", "query-id", "qid", "q_id")
POSITIVE_NAMES = (
    *("positive", "pos", "positives", "positive_passages", "positive_documents"),
    *("answer", "answers"),
)
POSITIVE_ID_NAMES = ("positive_id", "positive_ids", "pos_id", "pos_ids", "positive_doc_id")
DOCUMENT_NAMES = ("document", "passage", "text", "doc", "sentence2")
"""One text of which a score or a label may tell how well it answers; without either it does."""
LIST_NAMES = ("documents", "passages", "docs", "candidates", "texts", "candidate_passages")
DOCUMENT_ID_NAMES = (
    *("document_ids", "doc_ids", "docids", "passage_ids", "corpus_ids", "pids", "d_ids"),
    *("document_id", "doc_id", "docid", "passage_id", "corpus_id", "corpus-id", "pid"),
)
NEGATIVE_NAMES = (
    *("negative", "neg", "negatives", "negs", "negative_passages", "hard_negatives", "negative_documents"),
)
NEGATIVE_ID_NAMES = ("negative_id", "negative_ids", "neg_id", "neg_ids", "negative_doc_id")
SCORE_NAMES = ("scores", "score", "similarity", "teacher_scores", "teacher_score")
LABEL_NAMES = ("label", "labels", "relevance")
TEXT_NAMES = ("text", "passage", "contents", "content", "body")
TITLE_NAMES = ("title",)
_ALL_NAMES = (
    *(QUERY_NAMES + POSITIVE_NAMES + NEGATIVE_NAMES + DOCUMENT_NAMES + LIST_NAMES + TEXT_NAMES),
    *("_id", "id", *QUERY_ID_NAMES, *DOCUMENT_ID_NAMES, *POSITIVE_ID_NAMES),
)

_NEEDED = {
    "documents": ("text",),
    "candidates": ("query", "documents", "scores"),
    "triples": ("query", "positive", "negatives"),
}
"""Roles without which a source is not of a kind; the others need a query and a positive."""


class Layout:
    """Which columns of a source hold what, by their roles; empty where none does.

    A ``positive`` answers the query and ``negatives`` do not; of ``documents`` (candidates) ``scores`` or
    ``label`` tell. ``of_positives`` and ``of_negatives`` are scores of these alone; ``text`` and ``title``
    are of documents that queries are made of; ``ignored`` columns were taken for nothing.
    """

    def __init__(self, source: DataSource, first: Mapping[str, Any]) -> None:
        columns, names, join = source.columns, first.keys(), source.join
        of_queries = QUERY_ID_NAMES if join is not None and join.queries is not None else ()
        self._by_id = join is not None and join.corpus is not None
        self.query = columns.query or first_of((*of_queries, *QUERY_NAMES), names)
        self.positive = columns.positive or first_of(self._of(POSITIVE_NAMES, POSITIVE_ID_NAMES), names)
        self.negatives = self._negatives_among(names, columns.negatives)
        unnamed = names - {columns.scores, columns.label}
        self.scores = columns.scores or first_of(SCORE_NAMES, unnamed)
        self.label = columns.label or first_of(LABEL_NAMES, unnamed)
        several = columns.documents or first_of(self._of(LIST_NAMES, DOCUMENT_ID_NAMES), names)
        one = columns.documents or first_of(DOCUMENT_NAMES, names)
        self.documents = "" if self.positive else several or (one if self.scores or self.label else "")
        self.positive = self.positive or ("" if self.documents else one or several)
        self.text = columns.text or first_of(TEXT_NAMES, names)
        self.title = columns.title or first_of(TITLE_NAMES, names)
        self.of_positives = first_of(_scores_of([self.positive], "pos"), names) if self.positive else ""
        self.of_negatives = first_of(_scores_of(self.negatives, "neg"), names) if self.negatives else ""
        if not self.label and self._is_qrels(first):
            self.scores, self.label = "", self.scores
        if self.label:
            self._place_label(first.get(self.label))
        self.kind: Kind = self._told(source, names) if source.kind == "auto" else source.kind
        if self.kind == "pairs" and self.documents:
            self.kind = "candidates"  # pairs of which a label or a score tells whether they match
        used = {self.query, self.positive, self.documents, self.scores, self.label, self.of_positives}
        used |= set() if source.kind == "pairs" else {*self.negatives, self.of_negatives}
        used = {self.text, self.title} if self.kind == "documents" else used
        self.ignored = [name for name in names if name not in used]
        self._check(source, names)

    def _of(self, texts: tuple[str, ...], identities: tuple[str, ...]) -> tuple[str, ...]:
        """Names of columns: where texts are looked up by id those of ids first, else none of them."""
        return (*identities, *texts) if self._by_id else texts

    def _negatives_among(self, names: Names[str], given: str | tuple[str, ...] | None) -> tuple[str, ...]:
        if given is not None:
            return tuple(name for name in ((given,) if isinstance(given, str) else given) if name in names)
        known = self._of(NEGATIVE_NAMES, NEGATIVE_ID_NAMES)
        numbered = []
        for name in names:
            stem, _, number = name.rpartition("_")
            if stem in known and number.isdecimal():
                numbered.append((int(number), name))
        return (*(name for name in known if name in names), *(name for _, name in sorted(numbered)))

    def _is_qrels(self, first: Mapping[str, Any]) -> bool:
        """Whether these are judgements, whose column is called score too: two ids and a whole number."""
        ids = self.query in QUERY_ID_NAMES and self.documents in DOCUMENT_ID_NAMES
        value = first.get("score")
        whole = value.strip().lstrip("-").isdecimal() if isinstance(value, str) else isinstance(value, int)
        return ids and self.scores == "score" and whole

    def _place_label(self, value: Any) -> None:
        """Labels say which documents answer, or else they are scores, as sentence-transformers has them."""
        values = value if isinstance(value, list | tuple) else [value]
        # Of a positive and negatives the first is known without labels. What is not there tells nothing.
        if self.negatives or any(item is not None and grade_of(item) is None for item in values):
            self.scores, self.label = self.scores or self.label, ""
        else:
            self.documents, self.positive = self.documents or self.positive, ""

    def _told(self, source: DataSource, names: Names[str]) -> Kind:
        if self.query and self.documents:
            return "candidates"
        if self.query and self.positive:
            return "triples" if self.negatives else "pairs"
        # A query's id without the query: what else there is must not be taken for documents.
        asked = self.query or source.columns.query or first_of(QUERY_ID_NAMES, names)
        return "pairs" if asked else "documents"  # the check says what is missing

    def _check(self, source: DataSource, names: Names[str]) -> None:
        named = {"scores": source.columns.scores, "label": source.columns.label}
        needed = {role: column for role, column in named.items() if column}
        own = vars(self) | {"scores": self.scores or self.label, "negatives": next(iter(self.negatives), "")}
        needed |= {role: own[role] for role in _NEEDED.get(self.kind, ("query", "positive"))}
        missing = next((role for role, name in needed.items() if not name or name not in names), None)
        if missing is None:
            return
        known = ", ".join(repr(name) for name in list(names)[:12]) or "none"
        what = "training data" if source.kind == "auto" else self.kind
        hint = f"Name it: columns: {{{missing}: ...}}"
        if source.format in ("csv", "tsv") or {".csv", ".tsv"} & set(Path(source.path or "").suffixes):
            hint = f"{hint}; if the first line is a record, put one with the columns' names in front"
        if source.join is None and first_of(QUERY_ID_NAMES + POSITIVE_ID_NAMES + DOCUMENT_ID_NAMES, names):
            hint = f"{hint}; or say where the texts of ids are: join: {{queries: ..., corpus: ...}}"
        raise DataError(f"{source.name} has no column for the {missing} of {what}, but {known}", hint=hint)

    def __str__(self) -> str:
        told = vars(self) | {
            "negatives": ", ".join(self.negatives) if self.kind == "triples" else "",
            "scores": ", ".join(filter(None, (self.scores, self.of_positives, self.of_negatives))),
        }
        roles = (
            "text title" if self.kind == "documents" else "query positive negatives documents scores label"
        )
        return f"{self.kind} ({', '.join(f'{role}: {told[role]}' for role in roles.split() if told[role])})"


def wanted_columns(source: DataSource) -> list[str]:
    """Columns that tell how a CSV file is separated: the named ones, else all usual ones."""
    named: list[str] = []
    for value in source.columns.model_dump(exclude_none=True).values():
        named += [value] if isinstance(value, str) else value
    return named or list(_ALL_NAMES)


def first_of(candidates: Iterable[str], names: Names[str]) -> str:
    """The first that is among the names; empty if none is."""
    return next((name for name in candidates if name in names), "")


def _scores_of(columns: Iterable[str], short: str) -> list[str]:
    """Names that the scores of some columns may have."""
    names = [column.removesuffix("s") for column in columns] + [*columns, short]
    return [f"{name}_{ending}" for name in names for ending in ("scores", "score")]


def grade_of(value: Any) -> int | None:
    """The grade that a label is; None for what is none."""
    if isinstance(value, str):
        word = value.strip().casefold()
        try:
            value = float({"true": 1, "false": 0}.get(word, word))
        except ValueError:
            return None
    if isinstance(value, bool | int):
        return int(value)
    return int(value) if isinstance(value, float) and value.is_integer() else None
