"""A retriever for LangChain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import ConfigDict

from oskit.cluster.search.filters import Given
from oskit.cluster.search.hybrid import Hybrid
from oskit.integrations.source import Source, needs

with needs("langchain"):
    from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
    from langchain_core.documents import Document
    from langchain_core.load.serializable import SerializedConstructor, SerializedNotImplemented
    from langchain_core.retrievers import BaseRetriever
    from langchain_core.runnables.config import run_in_executor


class OskitRetriever(Source, BaseRetriever):
    """Finds documents by learned sparse vectors in OpenSearch, alone or together with BM25.

    Of a document in chunks ``page_content`` is the passage that matched best, and ``metadata["start_index"]``
    where it begins in the document's text. ``metadata`` has the document's other fields, without vectors, and
    its ``_score``; a field of the document with such a name gives way. ``id`` is the document's.

    All settings of :class:`~oskit.integrations.source.Source` can be given, and of each question ``k``,
    ``filter``, ``hybrid`` and what ``search_kwargs`` may hold, as in ``retriever.invoke(query, k=3)``.
    Asynchronous methods search in a thread.

    Attributes:
        k: Number of documents.
        filter: One filter, or several that all have to hold: ``"lang=de"``, or a query clause.
    """

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    k: int = 4
    filter: str | dict[str, Any] | list[str | dict[str, Any]] | None = None

    def _get_relevant_documents(
        self,
        query: str,
        *,
        run_manager: CallbackManagerForRetrieverRun,
        k: int | None = None,
        filter: Given | Sequence[Given] | None = None,
        **wanted: Any,
    ) -> list[Document]:
        size, chosen = self.k if k is None else k, self.filter if filter is None else filter
        made = []
        for found in self.find(query, size, chosen, wanted):
            own = {"_score": found.score} | ({} if found.start is None else {"start_index": found.start})
            made.append(Document(found.text, id=found.id, metadata={**found.fields, **own}))
        return made

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun, **wanted: Any
    ) -> list[Document]:
        manager = run_manager.get_sync()
        return await run_in_executor(None, self._get_relevant_documents, query, run_manager=manager, **wanted)

    @classmethod
    def is_lc_serializable(cls) -> bool:
        """It is, by ``langchain_core.load``; with ``allowed_objects`` and ``valid_namespaces`` to read it."""
        return True

    @property
    def lc_secrets(self) -> dict[str, str]:
        """What is never written down, and the environment's name of it."""
        return {"password": "OSKIT_PASSWORD"}

    def to_json(self) -> SerializedConstructor | SerializedNotImplemented:
        """The settings; of a searcher or a ``Hybrid`` only that there is a retriever."""
        if self.searcher is not None or isinstance(self.hybrid, Hybrid):
            return self.to_json_not_implemented()
        return super().to_json()
