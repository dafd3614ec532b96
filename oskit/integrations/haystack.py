"""A retriever for Haystack."""

from __future__ import annotations

import asyncio
from typing import Any, Unpack

from oskit.cluster.search.filters import Condition, Given, Joined
from oskit.errors import UsageError
from oskit.integrations.source import NEVER, How, Source, as_text, missing, needs, one_of

with needs("haystack"):
    from haystack import Document, component, default_from_dict, default_to_dict
    from haystack.document_stores.types import FilterPolicy, apply_filter_policy
    from haystack.utils import Secret


@component
class OskitRetriever:
    """Finds documents by learned sparse vectors in OpenSearch, alone or together with BM25.

    Of a document in chunks ``content`` is the passage that matched best, and ``meta["split_idx_start"]``
    where it begins in the document's text; a field of the document with that name gives way. ``meta`` has
    the document's other fields, without vectors.

    Args:
        index: An index, or an alias.
        top_k: Number of documents.
        filters: Haystack's, or one query clause of OpenSearch.
        filter_policy: Whether filters of a run replace these or are merged with them.
        password: Else ``OSKIT_PASSWORD``. Written down only as the name of an environment variable.
        **how: More of :class:`~oskit.integrations.source.Source`.

    Raises:
        UsageError: Settings or filters that cannot be right.
    """

    def __init__(
        self,
        index: str = "",
        *,
        top_k: int = 10,
        filters: dict[str, Any] | None = None,
        filter_policy: FilterPolicy | str = FilterPolicy.REPLACE,
        password: Secret | None = None,
        **how: Unpack[How],
    ) -> None:
        if password is not None and not isinstance(password, Secret):
            raise UsageError("the password is no Secret of Haystack", hint="Give Secret.from_env_var(NAME)")
        self.source = Source(index=index, password=password and password.resolve_value(), **how)
        self.top_k, self.filters, self.password = top_k, filters, password
        self.filter_policy = FilterPolicy.from_str(str(filter_policy))
        if filters:
            _translated(filters)

    def warm_up(self) -> None:
        """Open the archive, if one encodes queries."""
        self.source.opened()

    @component.output_types(documents=list[Document])
    def run(
        self, query: str, filters: dict[str, Any] | None = None, top_k: int | None = None
    ) -> dict[str, Any]:
        """Find documents.

        Args:
            query: A text.
            filters: In place of the retriever's, or merged with them (``filter_policy``).
            top_k: In place of the retriever's.

        Raises:
            OskitError: The search cannot be made, or fails.
        """
        both = apply_filter_policy(self.filter_policy, self.filters, filters)
        chosen = _translated(both) if both else None
        documents = []
        for found in self.source.find(query, self.top_k if top_k is None else top_k, chosen):
            start = {} if found.start is None else {"split_idx_start": found.start}
            documents.append(
                Document(id=found.id, content=found.text, meta={**found.fields, **start}, score=found.score)
            )
        return {"documents": documents}

    @component.output_types(documents=list[Document])
    async def run_async(
        self, query: str, filters: dict[str, Any] | None = None, top_k: int | None = None
    ) -> dict[str, Any]:
        """As :meth:`run`, in a thread."""
        return await asyncio.to_thread(self.run, query, filters, top_k)

    def to_dict(self) -> dict[str, Any]:
        """As Haystack writes components down.

        Raises:
            UsageError: It was given a searcher, or a password in its address.
        """
        if self.source.password is not None and self.password is None:
            raise UsageError(
                "the password in the address cannot be written down", hint="Set OSKIT_PASSWORD instead"
            )
        how = {"top_k": self.top_k, "filters": self.filters, "filter_policy": self.filter_policy.value}
        return default_to_dict(self, password=self.password, **how, **self.source.written())

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> OskitRetriever:
        """The inverse of :meth:`to_dict`."""
        return default_from_dict(cls, data)


def _translated(filters: object) -> Given:
    """A filter of Haystack as one of oskit.

    Raises:
        UsageError: It is malformed, or OpenSearch cannot answer it.
    """
    given = filters if isinstance(filters, dict) else {}
    if given and not {"field", "operator", "conditions"} & given.keys():
        return given  # a query of OpenSearch
    name, operator, conditions = given.get("field"), given.get("operator"), given.get("conditions")
    found: Joined | Condition | None = None
    if isinstance(conditions, list | tuple):
        parts = [_translated(each) for each in conditions]
        if operator in ("AND", "OR"):
            found = Joined("all" if operator == "AND" else "any", parts)
        elif operator == "NOT":  # not all of them
            found = Joined("none", [Joined("all", parts)])
    elif isinstance(name, str) and "value" in given:
        found = _condition("_id" if name == "id" else name.removeprefix("meta."), operator, given["value"])
    if found is None:
        raise UsageError(
            f"{filters!r} is no filter that OpenSearch can answer",
            hint='Write {"field": "meta.lang", "operator": "==", "value": "de"}, or a query of OpenSearch',
        )
    return found


def _condition(field: str, operator: object, value: Any) -> Condition | Joined | None:
    """A comparison, as Haystack understands it; None if there is no such one."""
    is_list = isinstance(value, list | tuple)
    if operator in ("==", "!=") and not is_list:
        same = missing(field) if value is None else one_of(field, [value])
    elif operator in ("in", "not in") and is_list:
        some = [one_of(field, [each for each in value if each is not None])]
        same = Joined("any", some + [missing(field)] * (None in value))
    elif operator in (">", ">=", "<", "<=") and not is_list:
        return NEVER if value is None else Condition(field, operator, (as_text(field, value),))
    else:
        return None
    return Joined("none", [same]) if operator in ("!=", "not in") else same
