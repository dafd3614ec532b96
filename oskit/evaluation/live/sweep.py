"""Which setting of a search to take: what each finds of the exact ranking, and how long it takes."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import fsum
from typing import TYPE_CHECKING, Any, Literal

from oskit.cluster.client.kind import kind_of
from oskit.cluster.search.answers import complete_search
from oskit.cluster.search.search import Searcher
from oskit.errors import SearchError, UsageError
from oskit.evaluation.live.index_facts import IndexFacts, read_facts, staying, was_written
from oskit.evaluation.live.presence import look_for_judged
from oskit.evaluation.live.stored_ranking import StoredRanking, encoded_vectors, rank_vectors, stored_vectors
from oskit.evaluation.live.sweep_result import DEPTHS, SettingFigures, SweepReport, recall
from oskit.evaluation.live.sweep_settings import Grid, Setting
from oskit.evaluation.offline.exact_scores import themselves
from oskit.evaluation.offline.metrics import MAIN_MEASURE, Run, judged_queries, percentiles, quality
from oskit.evaluation.offline.pruning_levels import PrunedDocuments
from oskit.evaluation.offline.result import Step, found_themselves, now

if TYPE_CHECKING:
    from opensearchpy import OpenSearch

    from oskit.archive.text_encoder import TextEncoder
    from oskit.data.collection import Collection

Weights = Mapping[str, Mapping[str, float]]

TIED = 200
"""Documents beyond the deepest recall whose exact scores are known, as they may be equal to the last one."""


def sweep(
    client: OpenSearch,
    index: str,
    collection: Collection,
    encoder: TextEncoder | None = None,
    *,
    model_id: str | None = None,
    field: str | None = None,
    grid: Grid = Grid(),  # noqa: B008 - frozen
    exact: Literal["index", "encoder"] = "index",
    queries: int = 100,
    size: int = 10,
    rounds: int = 3,
    least_recall: float = 0.95,
    on_step: Step = lambda _: None,
) -> SweepReport:
    """Compare settings of a search on one index, and say which to take.

    The cluster is only read: two-phase pipelines are part of the requests.

    Args:
        client: The cluster.
        index: Index, or alias of one.
        collection: Its queries are asked; its judgements tell nDCG@10. The documents are those of the index.
        encoder: Makes the queries' weights; without it a deployed model does, before anything is timed.
        model_id: Name or id of that model; without it the one that made the index.
        field: Of the vectors, where the index has several.
        grid: Values to try.
        exact: Where the exact scores come from: from the weights that stand in the index, or from the encoder
            and the collection's corpus, where the index keeps no weights in ``_source``.
        queries: At most so many, spread evenly over the collection's.
        size: Hits of a search that is timed.
        rounds: How often each query is timed with each setting, after once that is not counted.
        least_recall: The recall@10 that the setting must have.
        on_step: Told what is being done.

    Raises:
        UsageError: Options that do not go together.
        SearchError: The cluster refuses, there is no such index, it was replaced meanwhile, or it keeps no
            weights to compare with.
    """
    if min(queries, size, rounds) < 1 or not 0 <= least_recall <= 1:
        raise UsageError("queries, size and rounds must be at least 1, and the recall between 0 and 1")
    if exact == "encoder" and encoder is None:
        raise UsageError("exact scores by the encoder need one", hint="Give it with --archive")
    on_step(f"looking at {index}")
    facts = read_facts(client, index, field)
    with staying(client, facts):
        report = _Sweep(client, facts, collection, on_step, size=min(size, facts.max_hits)).run(
            Searcher(client, facts.name, encoder=encoder, model_id=model_id, field=field, notify=on_step),
            grid, encoder if exact == "encoder" else None, queries, rounds, least_recall,
        )  # fmt: skip
    if was_written(client, facts):
        report.warnings.append(
            "the index was written to meanwhile: the figures may be of different documents"
        )
    return report


@dataclass
class _Sweep:
    """One index while it is asked."""

    client: OpenSearch
    facts: IndexFacts
    collection: Collection
    on_step: Step
    size: int
    warnings: list[str] = field(default_factory=list)
    asked: frozenset[str] = frozenset()  # queries that are documents, and found themselves

    def run(
        self,
        searcher: Searcher,
        grid: Grid,
        encoder: TextEncoder | None,
        count: int,
        rounds: int,
        least_recall: float,
    ) -> SweepReport:
        info, storage = self.facts.info, self.facts.storage
        approximate = info.kind == "sparse_vector" and storage.approximate
        settings = grid.settings(
            info.kind,
            approximate=approximate,
            pipeline=self.facts.search_pipeline,
            passages=self.facts.passages.k(1) if self.facts.passages else 1,
            nested=info.nested,
        )
        self._tell_what_is_exact()
        weights = self._weights(searcher, count)
        asked = {query: judged for query, judged in self.collection.qrels.items() if query in weights}
        judged = look_for_judged(self.client, self.facts, asked, self.collection)
        self.warnings += [f"{told}: nDCG@10 is not that of this collection" for told in judged.told]
        what = (
            "encoding the corpus" if encoder else f"reading the weights of {self.facts.documents:,} documents"
        )
        self.on_step(f"{what}, for exact scores")
        ranking = self._exact(weights, encoder)
        exact = ranking.run
        if found := themselves(exact, self.collection, asked):
            self.asked = found
            self.warnings.append(found_themselves(len(self.asked)))
        most = self._most(ranking, least_recall)
        self.on_step(f"asking {len(weights):,} queries in {len(settings)} ways, as deep as recall is told")
        runs = [self._runs(setting, weights) for setting in settings]
        clocks = self._timed(settings, weights, rounds)
        rows = [self._figures(*row, weights, exact) for row in zip(settings, runs, clocks, strict=True)]
        return SweepReport(
            created=now(),
            cluster={"distribution": "opensearch", "version": kind_of(self.client).number},
            index=self.facts.to_dict(),
            collection={"name": self.collection.name, "split": self.collection.split},
            search={
                "queries": len(weights),
                "size": self.size,
                "rounds": rounds,
                "exact_by": "encoder" if encoder is not None else "index",
                "recall_of_bytes": most,
            },
            rows=rows,
            least_recall=least_recall,
            warnings=self.warnings,
        )

    def _tell_what_is_exact(self) -> None:
        storage, name = self.facts.storage, self.facts.name
        if self.facts.info.kind != "sparse_vector":
            return
        if not storage.approximate:
            self.warnings.append(
                f"{name} is searched exactly, whatever top_n, k and heap_factor are: its largest segment has "
                f"{storage.largest_segment:,} documents, and approximate_threshold is {storage.threshold:,}. "
                f"For an approximate search load it anew with --recreate --approximate-threshold "
                f"{max(1, storage.largest_segment)} or less, and merge its segments"
            )
        elif storage.features:
            self.warnings.append(
                f"some segments of {name} have fewer than {storage.threshold:,} documents and are searched "
                f"exactly; POST {name}/_forcemerge?max_num_segments=1 makes one of all"
            )

    def _weights(self, searcher: Searcher, count: int) -> dict[str, dict[str, float]]:
        """Of queries spread over the collection's; those without tokens are left out."""
        texts = self.collection.queries
        if len(texts) > count:
            ids = list(texts)
            texts = {ids[place * len(ids) // count]: "" for place in range(count)}
            texts = {query: self.collection.queries[query] for query in texts}
        self.on_step(f"making the weights of {len(texts):,} queries")
        made = dict(zip(texts, searcher.query_weights(list(texts.values())), strict=True))
        if changed := [told for _, told in made.values() if told]:
            self.warnings.append(f"of {len(changed):,} queries not all is asked, such as: {changed[0]}")
        found = {query: weights for query, (weights, _) in made.items() if weights}
        if not found:
            raise SearchError("no query has a token to ask for", hint="Is it the index's encoder?")
        if len(found) < len(made):
            self.warnings.append(f"{len(made) - len(found):,} queries have no tokens and are left out")
        return found

    def _exact(self, weights: Weights, encoder: TextEncoder | None) -> StoredRanking:
        facts, depth = self.facts, max(DEPTHS) + TIED
        if encoder is None:
            vectors = stored_vectors(self.client, facts)
        else:
            pruned = PrunedDocuments(encoder, facts.info.prune) if facts.info.prune else encoder
            vectors = encoded_vectors(pruned, self.collection, facts)
        ranking = rank_vectors(vectors, weights, depth, facts.storage)
        documents = ranking.documents
        if encoder is None and documents and not ranking.filled:
            raise SearchError(
                f"{facts.name!r} keeps no weights in _source, so what an exact search finds is not known",
                hint="Have the exact scores computed here: --exact encoder",
            )
        if documents != facts.documents:
            self.warnings.append(
                f"the exact scores are of {documents:,} documents, and the index has {facts.documents:,}"
            )
        return ranking

    def _most(self, ranking: StoredRanking, least_recall: float) -> float | None:
        """The recall@10 that rounding weights to bytes leaves, whatever is looked through."""
        if ranking.rounded is None:
            return None
        depth, rounded = DEPTHS[0], ranking.rounded
        most = _mean(recall(exact, list(rounded[query]), depth) for query, exact in ranking.run.items())
        if most is not None and most < least_recall:
            storage = self.facts.storage
            self.warnings.append(
                f"weights rounded to a byte leave a recall@10 of {most:.3f}, whatever is looked through: the "
                f"steps follow from quantization_ceiling_ingest ({storage.ceiling_ingest:g}) and "
                f"quantization_ceiling_search ({storage.ceiling_search:g}), which best are just above the "
                "heaviest weights of documents and of queries; the index has to be made anew for that"
            )
        return most

    def _ask(self, setting: Setting, weights: Mapping[str, float], size: int) -> dict[str, Any]:
        body = setting.body(self.facts.info, setting.tokens(weights), size)
        own = None if setting.phases else setting.pipeline or "_none"
        return complete_search(self.client, self.facts.name, body, search_pipeline=own)

    def _runs(self, setting: Setting, weights: Weights) -> dict[int, Run]:
        """What a setting finds, by depth: of one phase the deepest search holds the others."""
        depths = [depth for depth in DEPTHS if setting.finds(depth) and depth <= self.facts.max_hits]
        asked = depths if setting.phases else depths[-1:]
        found: dict[int, Run] = {}
        for depth in asked:
            answers = {query: self._ask(setting, tokens, depth) for query, tokens in weights.items()}
            found[depth] = {
                query: {hit["_id"]: float(hit["_score"]) for hit in answer["hits"]["hits"]}
                for query, answer in answers.items()
            }
        return {depth: found[depth if depth in found else asked[-1]] for depth in depths}

    def _timed(self, settings: Sequence[Setting], weights: Weights, rounds: int) -> list[_Clock]:
        """Every query with every setting, in turns, so that a slow moment of the machine hits them all."""
        clocks = [_Clock() for _ in settings]
        draw = random.Random(0)  # noqa: S311 - not a secret
        order = list(range(len(settings)))
        for number in range(rounds + 1):
            self.on_step(f"timing, round {number} of {rounds}" if number else "warming up")
            for tokens in weights.values():
                draw.shuffle(order)
                for place in order:
                    start = time.perf_counter()
                    answer = self._ask(settings[place], tokens, self.size)
                    clocks[place].note((time.perf_counter() - start) * 1000, answer["took"], number > 0)
        return clocks

    def _figures(
        self, setting: Setting, runs: Mapping[int, Run], clock: _Clock, weights: Weights, exact: Run
    ) -> SettingFigures:
        shallow = runs.get(DEPTHS[0], {})
        qrels = {query: judged for query, judged in self.collection.qrels.items() if query in weights}
        ndcg = None
        if shallow and judged_queries(qrels):
            ndcg = quality(shallow, qrels, (MAIN_MEASURE,), asked=self.asked).mean[MAIN_MEASURE]
        return SettingFigures(
            setting=setting,
            recall={
                depth: _mean(recall(exact[query], list(runs[depth][query]), depth) for query in weights)
                if depth in runs
                else None
                for depth in DEPTHS
            },
            ndcg=ndcg,
            tokens=sum(len(setting.tokens(tokens)) for tokens in weights.values()) / len(weights),
            wall=percentiles(clock.wall) or {},
            took=percentiles(clock.took) or {},
            warm_up=percentiles(clock.before) or {},
        )


def _mean(values: Iterator[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fsum(known) / len(known) if known else None


@dataclass
class _Clock:
    """Milliseconds of each search of a setting."""

    wall: list[float] = field(default_factory=list)
    took: list[float] = field(default_factory=list)
    before: list[float] = field(default_factory=list)

    def note(self, wall: float, took: float, counts: bool) -> None:
        """Keep the times of a search; before ``counts`` it is one that warms up."""
        if not counts:
            self.before.append(wall)
            return
        self.wall.append(wall)
        self.took.append(float(took))
