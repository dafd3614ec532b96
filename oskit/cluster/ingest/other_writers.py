"""What becomes of an index's vectors when somebody else writes: tried by simulation, nothing is stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Literal

from oskit.cluster.index.existing import ExistingIndex, existing_index
from oskit.cluster.index.mapping import IndexInfo
from oskit.cluster.index.passages import passage_of, texts_of
from oskit.cluster.index.sparse_fields import value_at, vectors_of
from oskit.cluster.ingest.default_pipeline import (
    DEFAULT,
    FINAL,
    pipeline_of,
    simulate,
    writable_info,
    written,
)

if TYPE_CHECKING:
    from opensearchpy import OpenSearch

Vector = Literal["new", "old", "mixed", "lost", "none", "refused"]

_TOLD: dict[Vector, str] = {
    "new": "the vector is that of the new text",
    "old": "the vector stays that of the old text, without a word",
    "mixed": "the vector is that of the new text and of the old one together, without a word",
    "lost": "the vector is lost, without a word: searches find the document no more",
    "none": "there is no vector, without a word: searches never find the document",
    "refused": "the document is refused",
}

_FIRST, _THEN = "quick brown fox jumps", "sparse retrieval of permits"


@dataclass(frozen=True)
class Way:
    """A way of writing.

    Attributes:
        name: As people call it.
        vector: What the document's vector is afterwards.
        passage: Whether BM25 sees the new text.
        why: What the cluster says, where it refuses; or what else is to be known.
    """

    name: str
    vector: Vector
    passage: bool
    why: str = ""
    runs_pipelines: bool = True

    @property
    def told(self) -> str:
        """For people."""
        bm25 = "" if self.passage or self.vector == "refused" else "; BM25 does not see the new text"
        return f"{_TOLD[self.vector]}{bm25}{f' ({self.why})' if self.why else ''}"


@dataclass(frozen=True)
class Check:
    """What becomes of vectors, by the way of writing.

    Attributes:
        index: The index itself.
        default_pipeline: What it runs on whatever is written.
        final_pipeline: And after that.
        excluded: Whether ``_source`` leaves the vectors out, so that an update has none to keep.
        ways: The ways of writing.
        notes: What else is to be known.
    """

    index: str
    default_pipeline: str | None
    final_pipeline: str | None
    excluded: bool
    ways: tuple[Way, ...]
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether what is written in any way but the bulk update is found by what it says."""
        return all(way.vector == "new" and way.passage for way in self.ways if way.runs_pipelines)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "ok": self.ok}


def check_writers(client: OpenSearch, index: str) -> Check:
    """Try what each way of writing would do to an index.

    Args:
        index: Its name, or that of an alias: then its write index.

    Raises:
        IndexingError: There is no such index, or what its texts are is not known, or the cluster refuses.
    """
    existing = existing_index(client, index, writing=True)
    excluded = _is_excluded(existing)
    if existing.is_semantic:
        return _of_semantic(existing, excluded)
    info = writable_info(existing)
    default, final = pipeline_of(existing), pipeline_of(existing, FINAL)
    try_ = _Trial(client, info, default, excluded)
    ways = (
        try_.way("index, create, bulk index: a new document", is_new=True),
        try_.way("_update of the text"),
        try_.way("_update_by_query"),
        try_.way("_reindex into this index"),
        try_.bulk_update(),
    )
    notes = [f"the final pipeline {final!r} was not tried"] if final else []
    notes += try_.notes()
    return Check(existing.name, default, final, excluded, ways, tuple(notes))


class _Trial:
    """Documents sent through the default pipeline by simulation."""

    def __init__(self, client: OpenSearch, info: IndexInfo, pipeline: str | None, excluded: bool) -> None:
        self._info, self._pipeline, self._excluded = info, pipeline, excluded
        title = texts_of(info)[0]
        old = {"1": 1.0} if info.key == "id" else {".": 1.0, "a.": 2.0}
        self._passage = passage_of(info)
        self._has_title = "T" if title else ""
        new = written(info, _FIRST, self._has_title)
        back = {**written(info, _THEN, self._has_title)}
        if self._passage not in texts_of(info)[1] and info.passage_field:
            back[self._passage] = f"{self._has_title} {_FIRST}".strip()
        with_vector = back if excluded else {**back, info.embedding_field: old}
        self._old = old
        dotted = {**written(info, _FIRST), "oskit_meta": {"v1.2": "x"}}
        empty = {**written(info, ""), **({} if excluded else {info.embedding_field: old})}
        sources = [new, with_vector, dotted, empty]
        found = simulate(client, info.name, pipeline, sources) if pipeline else sources
        self._new: Any
        self._back: Any
        self._dotted: Any
        self._empty: Any
        self._new, self._back, self._dotted, self._empty = found

    def way(self, name: str, *, is_new: bool = False) -> Way:
        text, result = (_FIRST, self._new) if is_new else (_THEN, self._back)
        if not isinstance(result, Mapping):
            return Way(name, "refused", False, str(result or "the pipeline drops it"))
        vectors = vectors_of(result, self._info.embedding_field)
        if not vectors:
            return Way(name, "none" if is_new else "lost", self._sees(result, text))
        return Way(name, "old" if vectors == [self._old] else "new", self._sees(result, text))

    def bulk_update(self) -> Way:
        """No pipeline runs, whatever there is."""
        name, passage = "bulk update of the text", self._passage in texts_of(self._info)[1]
        return Way(name, "lost" if self._excluded else "old", passage, "no pipeline runs for it", False)

    def _sees(self, result: Mapping[str, Any], text: str) -> bool:
        info = self._info
        if info.passage_field is None or info.text_fields:
            return True  # what BM25 goes by is the application's own
        return text in str(value_at(result, info.passage_field) or "")

    def notes(self) -> list[str]:
        """What the pipeline does to other documents."""
        found = []
        if isinstance(self._dotted, Mapping) and self._dotted.get("oskit_meta") != {"v1.2": "x"}:
            found.append('names with dots are taken apart: {"v1.2": "x"} is stored as {"v1": {"2": "x"}}')
        if isinstance(self._empty, Mapping):
            if self._pipeline and vectors_of(self._empty, self._info.embedding_field):
                found.append("a document whose text becomes empty keeps its vector")
            if self._info.kind == "sparse_vector" and value_at(self._empty, self._info.embedding_field) == {}:
                found.append("an empty text has an empty vector, which poisons a sparse_vector field")
        elif self._pipeline:
            found.append(f"an empty text is refused: {self._empty}")
        return found


def _is_excluded(existing: ExistingIndex) -> bool:
    """Whether ``_source`` has no vectors."""
    source: Mapping[str, Any] = existing.mapping.get("_source") or {}
    path = existing.info.embedding_field
    parts = path.split(".")
    parents = [".".join(parts[: n + 1]) for n in range(len(parts))]

    def any_of(patterns: list[str]) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in patterns for name in (*parents, f"{path}.x"))

    includes = source.get("includes") or []
    return any_of(source.get("excludes") or []) or bool(includes and not any_of(includes))


def _of_semantic(existing: ExistingIndex, excluded: bool) -> Check:
    """A ``semantic`` field encodes in every way of writing, the bulk update too (seen on 3.6)."""
    info = existing.info
    text = str(info.passage_field or info.text_field)
    back = Way("", "new", True, "" if excluded else "refused where the old vector has the token '.'")
    bulk: Vector = "new" if excluded else "mixed"
    ways = (
        Way("index, create, bulk index: a new document", "new", True),
        *(replace(back, name=name) for name in ("_update", "_update_by_query", "_reindex into this index")),
        Way(f"bulk update of {text}", bulk, True),
    )
    notes = [f"the semantic field {text!r} encodes what is written there, whatever pipeline runs"]
    if info.encode is not None:
        notes.append(f"oskit writes title and text into {text!r}, and so must others")
    default, final = pipeline_of(existing, DEFAULT), pipeline_of(existing, FINAL)
    return Check(existing.name, default, final, excluded, ways, tuple(notes))
