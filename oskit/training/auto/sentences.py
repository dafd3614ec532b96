"""Sentences of the answers as queries beside those that were asked.

Pairs say what people ask, mostly by few patterns; the sentences of their answers, which teachers label, are
what else these texts are about (benchmarks/README.md, few pairs from a fitted head).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from oskit.data.documents import Refusal
from oskit.training.data.layout import Layout, wanted_columns
from oskit.training.data.records import existing, records_of
from oskit.training.recipe.sources import Columns, DataSource, QuerySettings


def with_sentences(sources: Sequence[DataSource]) -> list[DataSource]:
    """The same, and each file of pairs once more as documents, unless documents are named beside them.

    Raises:
        DataError: A file is not there or cannot be read.
    """
    layouts = [(source, _layout(source)) for source in sources]
    if any(layout is not None and layout.kind == "documents" for _, layout in layouts):
        return list(sources)
    return [*sources, *_answers(layouts)]


def _answers(layouts: Sequence[tuple[DataSource, Layout | None]]) -> Iterator[DataSource]:
    settings = QuerySettings(kinds=("span",), remove=0)
    for source, layout in layouts:
        if layout is not None and layout.kind in ("pairs", "triples"):
            columns = Columns(text=layout.positive)
            changes = {"kind": "documents", "columns": columns, "queries": settings}
            yield source.model_copy(update=changes)


def _layout(source: DataSource) -> Layout | None:
    """Of a file whose first record has its texts in it, each in a column of its own."""
    path = existing(source)
    if path is None or not path.is_file() or source.join is not None:
        return None
    first = next(records_of(source, path, wanted_columns(source)), None)
    if first is None or isinstance(first, Refusal):
        return None
    layout = Layout(source, first.values)
    there = layout.kind == "documents" or isinstance(first.values.get(layout.positive), str)
    return layout if there else None
