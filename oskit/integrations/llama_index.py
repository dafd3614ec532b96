"""A retriever for LlamaIndex."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Unpack

from pydantic import SecretStr

from oskit.cluster.search.filters import Condition, Given, Joined, Operator
from oskit.errors import UsageError
from oskit.integrations.source import How, Source, as_text, missing, needs, one_of

with needs("llama-index"):
    from llama_index.core.base.base_retriever import BaseRetriever
    from llama_index.core.callbacks import CallbackManager
    from llama_index.core.constants import DEFAULT_SIMILARITY_TOP_K
    from llama_index.core.schema import (
        NodeRelationship,
        NodeWithScore,
        QueryBundle,
        RelatedNodeInfo,
        TextNode,
    )
    from llama_index.core.vector_stores import (
        FilterCondition,
        FilterOperator,
        MetadataFilter,
        MetadataFilters,
    )

_ORDERS: dict[FilterOperator, Operator] = {
    FilterOperator.GT: ">",
    FilterOperator.GTE: ">=",
    FilterOperator.LT: "<",
    FilterOperator.LTE: "<=",
}


class OskitRetriever(BaseRetriever):
    """Finds documents by learned sparse vectors in OpenSearch, alone or together with BM25.

    Of a document in chunks the node is the passage that matched best, and ``start_char_idx`` where it begins
    in the document's text. ``metadata`` has the document's other fields, without vectors. ``node_id`` and
    ``ref_doc_id`` are the document's id. Asynchronous methods search in a thread.

    Args:
        index: An index, or an alias.
        similarity_top_k: Number of documents.
        filters: LlamaIndex's, or oskit's own: ``"lang=de"``, or a query clause, or several.
        password: Else ``OSKIT_PASSWORD``.
        callback_manager: Of LlamaIndex, as is ``verbose``.
        **how: More of :class:`~oskit.integrations.source.Source`.

    Raises:
        UsageError: Settings or filters that cannot be right.
    """

    def __init__(
        self,
        index: str = "",
        *,
        similarity_top_k: int = DEFAULT_SIMILARITY_TOP_K,
        filters: MetadataFilters | Given | Sequence[Given] | None = None,
        password: str | SecretStr | None = None,
        callback_manager: CallbackManager | None = None,
        verbose: bool = False,
        **how: Unpack[How],
    ) -> None:
        self.source = Source(index=index, password=password, **how)
        self.similarity_top_k = similarity_top_k
        self._filter = _translated(filters) if isinstance(filters, MetadataFilters) else filters
        super().__init__(callback_manager=callback_manager, verbose=verbose)

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        made = []
        for found in self.source.find(query_bundle.query_str, self.similarity_top_k, self._filter):
            end = None if found.start is None else found.start + len(found.text)
            node = TextNode(
                id_=found.id,
                text=found.text,
                metadata=found.fields,
                start_char_idx=found.start,
                end_char_idx=end,
                relationships={NodeRelationship.SOURCE: RelatedNodeInfo(node_id=found.id)},
            )
            made.append(NodeWithScore(node=node, score=found.score))
        return made

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return await asyncio.to_thread(self._retrieve, query_bundle)


def _translated(given: MetadataFilters | MetadataFilter) -> Joined | Condition:
    """A filter of LlamaIndex as one of oskit.

    Raises:
        UsageError: OpenSearch cannot answer it.
    """
    if isinstance(given, MetadataFilter):
        return _condition(given)
    parts = [_translated(each) for each in given.filters]
    if given.condition is FilterCondition.NOT:
        return Joined("none", parts)
    return Joined("any" if given.condition is FilterCondition.OR else "all", parts)


def _condition(given: MetadataFilter) -> Joined | Condition:
    operator, field, value = given.operator, given.key, given.value
    values: list[Any] | None = value if isinstance(value, list) else None
    if operator is FilterOperator.IS_EMPTY:
        return missing(field)
    if values is not None and operator in (FilterOperator.IN, FilterOperator.NIN, FilterOperator.ANY):
        one = one_of(field, values)
        return Joined("none", [one]) if operator is FilterOperator.NIN else one
    if values is not None and operator is FilterOperator.ALL:
        return Joined("all", [one_of(field, [each]) for each in values])
    if values is None and value is not None:
        if operator in _ORDERS:
            return Condition(field, _ORDERS[operator], (as_text(field, value),))
        if operator in (FilterOperator.EQ, FilterOperator.CONTAINS):
            return one_of(field, [value])
        if operator is FilterOperator.NE:
            return Joined("none", [one_of(field, [value])])
    raise UsageError(
        f"the filter {field!r} {operator.value} {value!r} cannot be told OpenSearch",
        hint="Give oskit's own filters, such as a query clause: "
        f'filters=\'{{"match_phrase": {{"{field}": "…"}}}}\'',
    )
