"""One query: how it becomes a vector, and what is asked of the cluster."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar
from urllib.parse import quote, urlencode

from oskit.archive.siblings import archive_sha256, known_sha256
from oskit.cluster.client.failures import heard
from oskit.cluster.client.server_words import BEHIND_ALL_HITS
from oskit.cluster.index.sparse_fields import has_field
from oskit.cluster.models.predict import predict
from oskit.cluster.search.answers import complete_search, search_params
from oskit.cluster.search.clauses import (
    ABOVE_NOTHING,
    TWO_PHASE,
    Clause,
    bm25,
    filtered,
    neural_sparse,
    two_phase_pipeline,
)
from oskit.cluster.search.passages import DEEPER, best_passage
from oskit.cluster.search.query_weights import analyzer_weights, checked, fitted
from oskit.cluster.search.result import Hit, SearchBy, SearchResult
from oskit.cluster.search.sides import shares, side_clauses, side_lists
from oskit.data.documents import MARK_FIELD
from oskit.errors import ClusterError, UsageError

if TYPE_CHECKING:
    from opensearchpy import OpenSearch

    from oskit.cluster.models.registry import ModelInfo
    from oskit.cluster.search.fusion import Candidates
    from oskit.cluster.search.place import Place
    from oskit.cluster.search.scope import Scope
    from oskit.cluster.search.wanted import Asker, Wanted

Answer = TypeVar("Answer")

DEFAULT_ANALYZER = "bert-uncased"


@dataclass
class Request:
    """A query and where it is asked."""

    client: OpenSearch
    place: Place
    query: str | Mapping[str, float]
    by: SearchBy
    asker: Asker
    wanted: Wanted
    scope: Scope
    """The documents that may be found."""
    order: list[dict[str, str]]
    """Of the hits; empty for the best first."""
    model: ModelInfo | None = None
    """Encodes the query, if the cluster does."""
    encoded: Mapping[str, float] | None = None
    """What the encoder here made of the query, if that is known."""
    by_weights: bool = False
    """Send weights where a text would do, too."""
    changed: str | None = None
    """What OpenSearch does not take of the weights."""
    limited: str | None = None
    """Why hits may be missing."""
    scores_all: bool = False
    """Whether an approximate search was made to score all that may be found."""
    dense: Clause | None = None
    """What a hybrid search asks the dense vectors, but for their field."""

    def __post_init__(self) -> None:
        info, target = self.place.info, self.place.target
        # A pipeline that names a model would make the cluster refuse an analyzer; and left to itself the
        # cluster looks for token texts, also where rank_features are keyed by ids, or of several indexes.
        self.by_weights = (
            (info.kind == "rank_features" and info.key == "id")
            or (info.kind == "sparse_vector" and len(target.parts) > 1)
            or (self.by == "analyzer" and info.key == "token" and self.place.pipeline is not None)
        )

    def ask(self) -> dict[str, Any] | None:
        """The answer; None for a query without tokens, which the cluster would refuse."""
        return self._fitting(self._ask)

    def _ask(self) -> dict[str, Any] | None:
        body, target = self.body(), self.place.target
        if body is None:
            return None
        ask = partial(complete_search, self.client, target.index, routing=target.routing)
        try:
            return self.completed(ask(body))
        except ClusterError as error:
            if heard(error.__cause__) is not BEHIND_ALL_HITS:
                raise
        return _without_hits(ask(body | {"from": 0, "size": 1}))  # as any other search answers

    def candidates(self) -> Candidates | None:
        """What each side of a hybrid search finds by itself; None for a query without words."""
        hybrid = self.wanted.hybrid
        return self._fitting(lambda: side_lists(self, hybrid)) if hybrid and self.has_words else None

    def _fitting(self, ask: Callable[[], Answer]) -> Answer:
        try:
            return ask()
        except ClusterError as error:
            if self.model is None or self.by_weights or not _is_beyond_limits(error):
                raise
        self.by_weights = True  # more tokens, or heavier ones, than may be: ask by what fits of them
        return ask()

    @property
    def has_words(self) -> bool:
        """Whether there is anything to search for."""
        return not isinstance(self.query, str) or bool(self.query.strip())

    def completed(self, answer: dict[str, Any]) -> dict[str, Any]:
        """The answer, after looking deeper where it is short of documents because they have many passages."""
        passages, target, wanted = self.place.passages, self.place.target, self.wanted
        given = wanted.method_parameters or {}
        is_given = "k" in given or wanted.min_score is not None
        if (
            passages is None
            or wanted.hybrid is not None
            or self.by == "bm25"
            or is_given
            or (body := self.body()) is None
        ):
            return answer
        ask = partial(complete_search, self.client, target.index, routing=target.routing)
        least = min(wanted.size, passages.documents - wanted.offset)
        is_tuned = bool({"heap_factor", "top_n"} & set(given))
        answer, limited = passages.deepened(ask, body, answer, least, is_tuned=is_tuned)
        self.limited, self.scores_all = limited or self.limited, self.scores_all or not limited
        return answer

    def body(self) -> dict[str, Any] | None:
        """Of the search; None for a query without tokens."""
        if not self.has_words:
            return None
        info, wanted = self.place.info, self.wanted
        # Of chunks the best is told, by its clause.
        vectors = info.nested if info.nested and info.chunking else info.embedding_field
        shows_vectors = wanted.explain and not info.chunking
        others = [path for path in info.vectors if path != info.embedding_field]
        unseen = [MARK_FIELD, *others, *(() if shows_vectors else (vectors,))]
        asked = self._asked()
        if asked is None:
            return None
        if info.passage_field and info.text_field and info.text_field != info.passage_field:
            unseen.append(info.passage_field)  # title and text are there as well
        body = {**asked, "size": wanted.size, "_source": {"excludes": unseen}}
        if wanted.fields is not None:
            shown = [*wanted.fields, *((info.embedding_field,) if wanted.explain else ())]
            body["_source"] = {"includes": shown, "excludes": [MARK_FIELD]} if shown else False
        if wanted.offset:
            body["from"] = wanted.offset
        if self.order:
            body |= {"sort": self.order, "track_scores": True}
        if wanted.min_score is not None:
            body["min_score"] = wanted.min_score
        sparse = self.by != "bm25" and wanted.hybrid is None
        if info.kind == "sparse_vector" and sparse and self.scope.clause is not None:
            body["min_score"] = max(wanted.min_score or 0, ABOVE_NOTHING)
        if wanted.two_phase:  # whose second phase scores so many times what is shown, not what is skipped
            rate = TWO_PHASE["expansion_rate"] * wanted.reach / wanted.size
            body["search_pipeline"] = two_phase_pipeline({**TWO_PHASE, "expansion_rate": rate})
        return body

    def _asked(self) -> dict[str, Any] | None:
        """The query of the body, and what it needs beside it."""
        info, hybrid = self.place.info, self.wanted.hybrid
        if hybrid is not None:
            return hybrid.body(side_clauses(self, hybrid))
        clause = bm25(info, str(self.query)) if self.by == "bm25" else self.sparse_clause()
        return clause and {"query": filtered(clause, self.scope.clause)}

    def sparse_clause(self, *, shows: bool = True) -> Clause | None:
        """What the sparse vectors are asked; None for a query without tokens.

        Args:
            shows: Have the best passage of each hit told.
        """
        info, wanted = self.place.info, self.wanted
        if self.model is not None and not self.by_weights:
            query = {"query_text": self.query, "model_id": self.model.model_id}
        elif self.by == "analyzer" and not self.by_weights:
            query = {"query_text": self.query, "analyzer": self.asker.analyzer or DEFAULT_ANALYZER}
        elif self.weights:
            query = {"query_tokens": self.weights}
        else:
            return None
        method = None
        if info.kind == "sparse_vector":
            given = {k: v for k, v in (wanted.method_parameters or {}).items() if k != "filter"}
            reach = wanted.reach if wanted.hybrid is None else wanted.hybrid.depth
            if wanted.hybrid is not None and self.place.passages is not None:
                reach *= DEEPER  # a side's list cannot be looked into again
            method, self.limited = self.scope.method(reach, given, sorts=bool(self.order))
            self.scores_all = "filter" in method
        shows = shows and (wanted.explain or wanted.fields is None or bool(wanted.fields))
        inner_hits = best_passage(info, with_vector=wanted.explain) if shows else None
        return neural_sparse(info, query, method, inner_hits)

    @cached_property
    def weights(self) -> dict[str, float]:
        """The query's token weights, keyed as the index is, as OpenSearch takes them."""
        if isinstance(self.query, Mapping):
            return checked(self.query, self.place.info)
        found, self.changed = fitted(self._raw, self.place.info)
        return found

    @cached_property
    def _raw(self) -> Mapping[str, float]:
        return self._encoded(str(self.query)) if self.encoded is None else self.encoded

    def _encoded(self, text: str) -> Mapping[str, float]:
        info, encoder = self.place.info, self.asker.encoder
        if self.model is not None:
            return predict(self.client, self.model, [text], key=info.key)[0]
        if self.by == "analyzer":
            found = analyzer_weights(self.client, info, self.asker.analyzer or DEFAULT_ANALYZER, text)
            if info.key == "token":
                return found
            if encoder is None:
                raise UsageError(
                    f"{info.name!r} is keyed by token ids, which an analyzer does not tell",
                    hint="Search by model, or give the encoder with --archive DIR",
                )
            ids = {encoder.vocabulary.id_of(token): weight for token, weight in found.items()}
            return {str(token_id): weight for token_id, weight in ids.items() if token_id is not None}
        if encoder is None:
            raise UsageError("token weights made here need an encoder", hint="Give --archive DIR")
        return encoder.query_weights([text], key=info.key)[0]

    def to_dict(self) -> dict[str, Any]:
        """The search as it would be sent: method, path with its parameters, and body; and its warning.

        Raises:
            UsageError: Nothing would be sent, as the query has no tokens.
        """
        body, target = self.body(), self.place.target
        if body is None:
            raise UsageError("the query has no tokens, so that nothing is sent")
        params = urlencode(search_params(routing=target.routing))
        path = f"/{quote(target.index)}/_search?{params}"
        warning = "; ".join(filter(None, self._doubts())) or None
        return {"method": "POST", "path": path, "body": body, "warning": warning}

    def result(self, answer: dict[str, Any] | None) -> SearchResult:
        """What was found."""
        info, target, pipeline = self.place.info, self.place.target, self.place.pipeline
        hybrid = self.wanted.hybrid
        if answer is None:
            return SearchResult(target.asked, self.by, 0, 0, [], info.key, {} if self.has_words else None)
        explain, two_phase = self.wanted.explain, self.wanted.two_phase
        sparse = hybrid is None or hybrid.has("sparse")
        weights = self.weights if sparse and (explain or self.by == "tokens") else None
        found, total = answer["hits"]["hits"], answer["hits"]["total"]
        candidates = self.candidates() if explain else None
        told = shares(hybrid, candidates) if hybrid is not None and candidates is not None else {}
        if self.wanted.fields is None:
            self._show_passages([hit for hit in found if not hit.get("_source")])
        doubts = [*self._doubts(), self._lacking(found)]
        sees_all = total["relation"] == "eq" and not two_phase and not self.limited
        if info.kind == "sparse_vector" and sparse and self.by != "bm25":
            sees_all = sees_all and total["value"] < (self.wanted.reach if hybrid is None else hybrid.depth)
            sees_all = sees_all and (self.scores_all or not self.place.may_be_approximate(self.client))
        relation: Literal["eq", "gte"] = "eq" if sees_all else "gte"
        return SearchResult(
            index=target.asked,
            by=self.by,
            took_ms=int(answer["took"]),
            total=int(total["value"]),
            hits=[
                replace(Hit.read(hit, info, weights if explain else None), sides=told.get(hit["_id"], {}))
                for hit in found
            ],
            key=info.key,
            query_weights=weights,
            warning="; ".join(filter(None, doubts)) or None,
            total_relation=relation,
            search_pipeline=None if self._own_pipeline else pipeline,
            hybrid=None if hybrid is None else hybrid.to_dict(),
            tokens=self._tokens(weights) if explain and weights else {},
        )

    @property
    def _own_pipeline(self) -> str | None:
        """What takes the place of the index's search pipeline, with its verb."""
        if self.wanted.two_phase:
            return "two phases take"
        return "the fusion takes" if self.wanted.hybrid is not None else None

    def _doubts(self) -> list[str | None]:
        """What is known of the answer once the body is made."""
        hybrid, pipeline, own = self.wanted.hybrid, self.place.pipeline, self._own_pipeline
        sparse = hybrid is None or hybrid.has("sparse")
        replaced = (
            f"{own} the place of the index's search pipeline {pipeline!r}" if own and pipeline else None
        )
        lacks = self.place.target.lacks
        return [
            f"not searched, as they have no such vectors: {', '.join(lacks)}" if lacks and sparse else None,
            self._mismatch() if sparse else None,
            self.changed,
            self.scope.told,
            self.limited,
            self._language() if sparse else None,
            hybrid.told if hybrid is not None else None,
            replaced,
        ]

    def _tokens(self, weights: Mapping[str, float]) -> dict[str, str]:
        """What the query's tokens are called, where the index has ids."""
        encoder, model = self.asker.encoder, self.model
        if self.place.info.key != "id":
            return {}
        if encoder is not None:
            vocabulary = encoder.vocabulary
            ids = [key for key in weights if key.isdecimal() and int(key) < vocabulary.size]
            return {key: vocabulary.key_of(int(key)) or vocabulary.token_of(int(key)) for key in ids}
        if model is None:
            return {}
        # A model calls its tokens by their texts or by their ids, never by both: the weights tell which is
        # which, but for tokens of the same weight.
        (named,) = predict(self.client, model, [str(self.query)], key="token")
        by_weight = [_by_weight(named), _by_weight(self._raw)]
        both = set(by_weight[0]) & set(by_weight[1])
        return {
            ids[0]: texts[0]
            for texts, ids in ([side[w] for side in by_weight] for w in both)
            if len(texts) == len(ids) == 1
        }

    def _lacking(self, found: list[dict[str, Any]]) -> str | None:
        """Which of the fields that are to be shown no hit shows."""
        names = [name for name in self.wanted.fields or () if found and "*" not in name]
        vectors = [name for name in names if name == self.place.info.embedding_field]
        sources = [hit.get("_source") or {} for hit in found]
        lacking = [
            name for name in names if name not in vectors and not any(has_field(one, name) for one in sources)
        ]
        told = [f"no hit has the field {', '.join(map(repr, lacking))}"] if lacking else []
        told += [f"vectors are not shown, and so not {vectors[0]!r}"] if vectors else []
        return "; ".join(told) or None

    def _show_passages(self, bare: list[dict[str, Any]]) -> None:
        """Fetch the passages of documents that have nothing else to show."""
        info, target = self.place.info, self.place.target
        if not bare or info.passage_field is None:
            return
        only = {"ids": {"values": [hit["_id"] for hit in bare]}}
        body = {"size": len(bare), "_source": [info.passage_field], "query": only}
        answer = complete_search(
            self.client, target.index, body, search_pipeline="_none", routing=target.routing
        )
        sources = {hit["_id"]: hit.get("_source") for hit in answer["hits"]["hits"]}
        for hit in bare:
            hit["_source"] = sources.get(hit["_id"])

    def _language(self) -> str | None:
        """A warning if the vocabulary of the query's encoder hardly knows its script."""
        watch = self.asker.watch
        return watch.told(self.query) if watch and self.by != "bm25" and isinstance(self.query, str) else None

    def _mismatch(self) -> str | None:
        """A warning if the query's encoder is known not to be that of the documents."""
        info, encoder = self.place.info, self.asker.encoder
        recorded = info.encoder
        used, due = None, recorded.sha256
        known = known_sha256(encoder) if encoder is not None else frozenset()
        if self.model is not None:
            if self.model.model_id in (recorded.model_id, recorded.query_model_id):
                return None  # its predictions were compared when it was recorded
            used = self.model.sha256
            due = recorded.query_sha256 if self.model.function_name == "SPARSE_TOKENIZE" else due
        elif self.by == "tokens" and encoder is not None:
            used = archive_sha256(encoder)
        if not used or not due or used == due or due in known:
            return None
        return (
            f"{info.name} was made with another archive ({recorded.name or 'unnamed'}, {due[:12]}) "
            f"than the one that encoded the query ({used[:12]}); "
            "scores mean nothing unless both hold the same encoder"
        )


def _by_weight(weights: Mapping[str, float]) -> dict[float, list[str]]:
    keys: dict[float, list[str]] = {}
    for key, weight in weights.items():
        keys.setdefault(weight, []).append(key)
    return keys


def _without_hits(answer: dict[str, Any]) -> dict[str, Any]:
    return {**answer, "hits": {**answer["hits"], "hits": []}}


def _is_beyond_limits(error: ClusterError) -> bool:
    """Whether the cluster refused the weights that its own model gave a query."""
    known = heard(error.__cause__)
    return known is not None and known.words.startswith(("maxClauseCount", "weight must be"))
