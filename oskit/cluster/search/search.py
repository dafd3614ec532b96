"""Search an index of sparse vectors in every way that the cluster offers, and explain what matched."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from oskit.cluster.client.failures import heard
from oskit.cluster.client.server_words import NO_INDEX
from oskit.cluster.models.predict import with_model
from oskit.cluster.models.registry import find_model
from oskit.cluster.search.answers import complete_searches
from oskit.cluster.search.fusion import Candidates
from oskit.cluster.search.order import ordered
from oskit.cluster.search.place import Place, find_place, stamp_of
from oskit.cluster.search.query_model import check_same_encoder, query_model
from oskit.cluster.search.request import Request
from oskit.cluster.search.result import SearchBy, SearchResult
from oskit.cluster.search.scope import Scope
from oskit.cluster.search.wanted import Asker, Wanted
from oskit.data.values import clean_text
from oskit.errors import ClusterError, UsageError

if TYPE_CHECKING:
    from opensearchpy import OpenSearch

    from oskit.archive.text_encoder import TextEncoder
    from oskit.cluster.models.registry import ModelInfo
    from oskit.cluster.search.filters import Given
    from oskit.cluster.search.hybrid import Hybrid

Answer = TypeVar("Answer")
Query = str | Mapping[str, float]

LOOKS = 4
"""How often a name is looked up whose index is gone when it is searched."""

TOGETHER = 50
"""Queries of one ``_msearch``."""


class Searcher:
    """Answers many queries, and looks up index, mapping and model once.

    What may change meanwhile is noticed: before queries are asked, one small request tells whether the name
    still stands for the same index, made in the same way, seen through the same filter; and where a model or
    the index is gone when it is asked, all is looked up again. So an alias may move, an index be made anew
    and a model be deployed under another id while a searcher lives. It may be used by several threads.

    Args:
        client: From :func:`oskit.cluster.client.connection.connect`.
        index: An index or an alias of one. What the alias hides stays hidden.
        by: How a query becomes a vector. ``"model"``: by a deployed encoder. ``"tokenizer"``: by a deployed
            tokenizer model (inference-free). ``"analyzer"``: by an analyzer and its built-in weights.
            ``"tokens"``: here, by ``encoder``. ``"bm25"``: not at all, as a plain text query for comparison.
            Without it, what is given decides, and else how the index was made.
        model_id: Name or id of the model; without it the one that made the index.
        analyzer: ``bert-uncased`` or ``mbert-uncased``.
        encoder: For ``"tokens"``; also tells the ids behind an analyzer's tokens, and is checked against the
            model where one encodes.
        field: Of the vectors, where the index has several.
        notify: Told, in one line, that the model is being waited for, as after the restart of a node.
        trust_s: Seconds for which what was looked up is believed without that small request. With more than 0
            an alias that moves is noticed so much later.
    """

    def __init__(
        self,
        client: OpenSearch,
        index: str,
        *,
        by: SearchBy | None = None,
        model_id: str | None = None,
        analyzer: str | None = None,
        encoder: TextEncoder | None = None,
        field: str | None = None,
        notify: Callable[[str], object] | None = None,
        trust_s: float = 0.0,
    ) -> None:
        self._client, self._index, self._field = client, index, field
        self._asker = Asker(by, model_id, analyzer, encoder)
        self._notify, self._trust_s = notify, trust_s
        self._place: Place | None = None
        self._seen = 0.0
        self._encoding = threading.Lock()

    def search(
        self,
        query: Query,
        *,
        size: int = 10,
        two_phase: bool = False,
        explain: bool = False,
        method_parameters: Mapping[str, Any] | None = None,
        filter: Given | Sequence[Given] | None = None,
        offset: int = 0,
        sort: str | Sequence[str] = (),
        fields: Sequence[str] | None = None,
        min_score: float | None = None,
        hybrid: Hybrid | None = None,
    ) -> SearchResult:
        """Answer a query.

        Args:
            query: A text; for ``by="tokens"`` also token weights, keyed as the index is.
            size: Number of hits.
            two_phase: Score by the heavy tokens first and by all of them only the best; ``rank_features``
                only.
            explain: Tell the tokens that matched.
            method_parameters: ``top_n``, ``k``, ``heap_factor``; ``sparse_vector`` only. ``k`` is as many as
                are wanted if it is not given, or OpenSearch would find 10, and with a filter more.
            filter: One filter, or several that all have to hold (:mod:`oskit.cluster.search.filters`):
                ``"lang=de"``, ``"year>=2020"``, or a query clause as a dictionary.
            offset: Hits to skip.
            sort: ``"field"`` or ``"field:desc"``, one or several, in the place of the best first.
            fields: What to show of the documents, in the place of everything.
            min_score: Least score of a hit.
            hybrid: Search in several ways at once; sparse vectors as the searcher does, if they are a side.

        Raises:
            UsageError: Options that do not fit together, or not the index.
            IndexingError: The name stands for several indexes, or which field is not clear.
            SearchError: There is no such index, or the cluster refuses.
            ModelError: There is no such model.
        """
        wanted = Wanted(
            size, two_phase, explain, method_parameters, filter, offset, sort, fields, min_score, hybrid
        )

        def ask(place: Place, *, is_new: bool) -> SearchResult:
            (request,) = self._requests(place, [query], wanted)
            # What was looked up before may be another model now, which is no reason to wait for this one.
            model = request.model if is_new else None
            return request.result(with_model(self._client, model, request.ask, notify=self._notify))

        return self._somewhere(ask)

    @overload
    def search_many(
        self, queries: Sequence[Query], *, return_errors: Literal[True], **wanted: Any
    ) -> list[SearchResult | ClusterError]: ...
    @overload
    def search_many(
        self, queries: Sequence[Query], *, return_errors: Literal[False] = False, **wanted: Any
    ) -> list[SearchResult]: ...
    def search_many(
        self, queries: Sequence[Query], *, return_errors: bool = False, **wanted: Any
    ) -> list[SearchResult] | list[SearchResult | ClusterError]:
        """Answer many queries, :data:`TOGETHER` in one request.

        A query that fails among the others is asked once more by itself, with the patience of every request.

        Args:
            queries: As for :meth:`search`, in any mixture.
            return_errors: Put the error of a query that fails in the place of its result, in the place of
                raising it.
            **wanted: ``size``, ``filter`` and all else that :meth:`search` takes.

        Raises:
            ClusterError: What the first query that fails raises.
            UsageError: As :meth:`search` does.
        """
        found: list[Any] = []
        for start in range(0, len(queries), TOGETHER):
            batch = queries[start : start + TOGETHER]
            answers = self._somewhere(partial(self._ask_together, batch, Wanted(**wanted)))
            for query, answer in zip(batch, answers, strict=True):
                if isinstance(answer, ClusterError):
                    try:
                        answer = self.search(query, **wanted)
                    except ClusterError as error:
                        if not return_errors:
                            raise
                        answer = error
                found.append(answer)
        return found

    def _ask_together(
        self, queries: Sequence[Query], wanted: Wanted, place: Place, *, is_new: bool
    ) -> list[SearchResult | ClusterError]:
        """One request; the error of a query stands in the place of its result."""
        requests = self._requests(place, queries, wanted)
        bodies = [_body(request) for request in requests]
        sent = [body for body in bodies if isinstance(body, dict)]
        target = place.target
        answers = iter(complete_searches(self._client, target.index, sent, routing=target.routing))
        told = [next(answers) if isinstance(body, dict) else body for body in bodies]
        return [_result(request, answer) for request, answer in zip(requests, told, strict=True)]

    def request(self, query: Query, **wanted: Any) -> dict[str, Any]:
        """What :meth:`search` would send, as ``method``, ``path`` and ``body``; nothing is searched.

        What it would warn of before it knows the answer is ``warning``.

        Raises:
            UsageError: As :meth:`search` does, and where nothing would be sent.
            ClusterError: As :meth:`search` does.
        """

        def ask(place: Place, *, is_new: bool) -> dict[str, Any]:
            (request,) = self._requests(place, [query], Wanted(**wanted))
            model = request.model if is_new else None
            return with_model(self._client, model, request.to_dict, notify=self._notify)

        return self._somewhere(ask)

    def query_weights(self, queries: Sequence[str]) -> list[tuple[dict[str, float], str | None]]:
        """Token weights of queries, keyed as the index is, as OpenSearch takes them, and what that changed.

        Raises:
            ClusterError: As :meth:`search` does.
            UsageError: Texts without vectors, as for BM25.
        """

        def ask(place: Place, *, is_new: bool) -> list[tuple[dict[str, float], str | None]]:
            requests = self._requests(place, queries, Wanted())
            for request in requests:
                model = request.model if is_new else None
                with_model(self._client, model, partial(getattr, request, "weights"), notify=self._notify)
            return [(request.weights, request.changed) for request in requests]

        return self._somewhere(ask)

    def candidates(
        self, queries: Sequence[str], hybrid: Hybrid, *, filter: Given | Sequence[Given] | None = None
    ) -> list[Candidates]:
        """What each side of a hybrid search finds by itself for each query, to be fused here.

        Raises:
            ClusterError: As :meth:`search` does.
            UsageError: As :meth:`search` does.
        """

        def look(place: Place, *, is_new: bool) -> list[Candidates]:
            requests = self._requests(place, queries, Wanted(1, filter=filter, hybrid=hybrid))
            model = requests[0].model if requests and is_new else None
            ask = partial(with_model, self._client, model, notify=self._notify)
            found = [ask(request.candidates) for request in requests]
            return [Candidates.of([[[]] * len(hybrid.sides)]) if one is None else one for one in found]

        return self._somewhere(look)

    def _somewhere(self, ask: Callable[..., Answer]) -> Answer:
        """What ``ask`` returns for the place that is known, or else for what is found when it is gone."""
        place, is_new = self._known(), False
        for looks_left in reversed(range(LOOKS + 1)):
            is_new |= place is None
            try:
                return ask(place or self._look(), is_new=is_new)
            except ClusterError as error:
                # An alias may move, and the index behind it be deleted, between the look and the search.
                if is_new and (looks_left <= 1 or heard(error.__cause__) is not NO_INDEX):
                    raise
            place = None
        raise AssertionError("the last look returns or raises")

    def _known(self) -> Place | None:
        """The place that was found before, as long as nothing of it has changed."""
        place, now = self._place, time.monotonic()
        if place is None or (self._trust_s and now - self._seen < self._trust_s):
            return place
        if place.stamp is None or stamp_of(self._client, self._index) != place.stamp:
            return None
        self._seen = now
        return place

    def _look(self) -> Place:
        # The first time nothing is compared: a search that is the only one needs no stamp.
        stamp = stamp_of(self._client, self._index) if self._place is not None else None
        place = find_place(self._client, self._index, self._field, stamp)
        self._place, self._seen = place, time.monotonic()
        return place

    def _requests(self, place: Place, queries: Sequence[Query], wanted: Wanted) -> list[Request]:
        """The queries as requests; those of them that are encoded here, at once."""
        index, hybrid = place.target.index, wanted.hybrid
        wanted.check_depth(index, place.max_hits)
        if hybrid is not None and any(isinstance(query, Mapping) for query in queries):
            raise UsageError("a hybrid search needs the query's text, and this one is token weights")
        scope = Scope(self._client, place, wanted.filters)
        order = ordered(self._client, index, wanted.sort, place.learnt)
        sparse = hybrid is None or hybrid.has("sparse")
        asked = []
        for query in queries:
            by = self._asker.way(query)
            wanted.check(place.info, by)
            clean = query if isinstance(query, Mapping) else clean_text(query)
            request = Request(self._client, place, clean, by, self._asker, wanted, scope, order)
            if request.has_words and sparse and by in ("model", "tokenizer"):
                request.model = self._model(place, by)
            asked.append(request)
        encoder = self._asker.encoder
        here = [one for one in asked if sparse and one.by == "tokens" and isinstance(one.query, str)]
        if here and encoder is not None:
            with self._encoding:
                made = encoder.query_weights([str(one.query) for one in here], key=place.info.key)
            for one, weights in zip(here, made, strict=True):
                one.encoded = weights
        if hybrid is not None and hybrid.has("dense"):
            self._ask_dense(place, asked, hybrid)
        return asked

    def _ask_dense(self, place: Place, asked: Sequence[Request], hybrid: Hybrid) -> None:
        """What the dense side is asked: a vector made here, or a text and the model that encodes it."""
        texts = [str(request.query) for request in asked]
        if hybrid.embed is not None:
            for request, vector in zip(asked, hybrid.embed(texts), strict=True):
                request.dense = {"knn": {"vector": [float(number) for number in vector]}}
            return
        if (model := place.models.get("dense")) is None:
            model = place.models["dense"] = find_model(self._client, str(hybrid.dense_model))
        for request, text in zip(asked, texts, strict=True):
            request.dense = {"neural": {"query_text": text, "model_id": model.model_id}}

    def _model(self, place: Place, by: Literal["model", "tokenizer"]) -> ModelInfo:
        """The model that encodes queries, looked up once for a place."""
        if (known := place.models.get(by)) is not None:
            return known
        model = query_model(self._client, place.info, by, self._asker.model_id)
        if self._asker.encoder is not None:
            with self._encoding:
                check_same_encoder(self._client, model, self._asker.encoder, notify=self._notify)
        place.models[by] = model
        return model


def _body(request: Request) -> dict[str, Any] | ClusterError | None:
    try:
        return request.body()
    except ClusterError as error:
        return error


def _result(request: Request, answer: dict[str, Any] | ClusterError | None) -> SearchResult | ClusterError:
    if isinstance(answer, ClusterError):
        return answer
    return request.result(request.completed(answer) if answer is not None else None)


def search(
    client: OpenSearch,
    index: str,
    query: Query,
    *,
    by: SearchBy | None = None,
    model_id: str | None = None,
    analyzer: str | None = None,
    encoder: TextEncoder | None = None,
    field: str | None = None,
    notify: Callable[[str], object] | None = None,
    **wanted: Any,
) -> SearchResult:
    """Answer one query; for several, a :class:`Searcher`, whose arguments and errors these are.

    Args:
        **wanted: ``size``, ``filter`` and all else that :meth:`Searcher.search` takes.
    """
    searcher = Searcher(
        client,
        index,
        by=by,
        model_id=model_id,
        analyzer=analyzer,
        encoder=encoder,
        field=field,
        notify=notify,
    )
    return searcher.search(query, **wanted)
