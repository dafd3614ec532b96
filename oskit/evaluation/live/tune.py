"""Which fusion of BM25, sparse and dense search serves judged queries best, and whether any does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from oskit.cluster.client.kind import kind_of
from oskit.cluster.search.fusion import Candidates, Fusion
from oskit.cluster.search.hybrid import Hybrid
from oskit.cluster.search.search import Searcher
from oskit.errors import DataError
from oskit.evaluation.live.index_facts import read_facts, staying, was_written
from oskit.evaluation.live.presence import look_for_judged
from oskit.evaluation.live.tune_result import TunedRow, TuneReport
from oskit.evaluation.offline.exact_scores import themselves
from oskit.evaluation.offline.fusion_settings import (
    FusionSetting,
    Values,
    cross_validated,
    measured,
    rankings,
    settings,
)
from oskit.evaluation.offline.metrics import MEASURES, judged_queries, quality
from oskit.evaluation.offline.result import Step, found_themselves, now
from oskit.evaluation.offline.significance import Significance, paired_bootstrap

if TYPE_CHECKING:
    from opensearchpy import OpenSearch

    from oskit.archive.text_encoder import TextEncoder
    from oskit.cluster.search.result import SearchBy
    from oskit.data.collection import Collection

_AT_ONCE = 20
"""Queries between two notes of how far it is."""


def tune(
    client: OpenSearch,
    index: str,
    collection: Collection,
    encoder: TextEncoder | None = None,
    *,
    sides: Hybrid,
    fusions: Sequence[Fusion],
    by: SearchBy | None = None,
    model_id: str | None = None,
    analyzer: str | None = None,
    field: str | None = None,
    folds: int = 5,
    on_step: Step = lambda _: None,
) -> TuneReport:
    """Try all fusions of the sides' lists, which the cluster is asked for once a query.

    The lists are fused here, as the cluster would (:mod:`oskit.cluster.search.fusion`). The cluster is only
    read.

    Args:
        client: The cluster.
        index: Index, or alias of one, that holds the collection's corpus.
        collection: Its judged queries are asked.
        encoder: Makes the queries' sparse weights here; without it a deployed model or an analyzer does.
        sides: What is searched and how deep; its weights and its fusion do not count.
        fusions: What to try.
        by: As of :class:`oskit.cluster.search.search.Searcher`, and so are ``model_id``, ``analyzer`` and
            ``field``.
        folds: In how many parts the queries are cut, each measured by what the others choose.
        on_step: Told what is being done.

    Raises:
        UsageError: Options that do not go together, or a side has no field.
        SearchError: The cluster refuses, there is no such index, or it was replaced meanwhile.
        DataError: Too few queries are judged, or none of what they judge is in the index or among the hits.
    """
    on_step(f"looking at {index}")
    facts = read_facts(client, index, field)
    judged = [query for query in judged_queries(collection.qrels) if query in collection.queries]
    if len(judged) < 2 * folds:
        raise DataError(
            f"{len(judged)} judged queries are too few to hold one of {folds} parts out",
            hint="Judge more queries, or take fewer parts with --folds",
        )
    qrels = {query: collection.qrels[query] for query in judged}
    documents = look_for_judged(client, facts, qrels, collection)
    if len(documents.missing) == documents.relevant:
        raise DataError(
            f"{facts.name} has none of the {documents.relevant:,} documents of {collection.name} that are "
            "judged relevant",
            hint="Is it the index of this collection?",
        )
    if documents.changed and len(documents.changed) == documents.compared:
        raise DataError(
            f"{facts.name} has other texts under the ids of {collection.name}: all {documents.compared:,} "
            f"relevant documents that were compared differ, such as {documents.changed[0]!r}",
            hint="Is it the index of this collection?",
        )
    searcher = Searcher(
        client, facts.name, by=by, model_id=model_id, analyzer=analyzer, encoder=encoder, field=field,
        notify=on_step, trust_s=60,
    )  # fmt: skip
    names = [side.name for side in sides.sides]
    with staying(client, facts):
        found: dict[str, Candidates] = {}
        for start in range(0, len(judged), _AT_ONCE):
            on_step(f"asking {', '.join(names)}: {start:,} of {len(judged):,} queries")
            part = judged[start : start + _AT_ONCE]
            lists = searcher.candidates([collection.queries[query] for query in part], sides)
            found |= dict(zip(part, lists, strict=True))
    if not any(set(qrels[query]) & set(found[query].ids) for query in judged):
        raise DataError(
            f"no judged document of {collection.name} is among the hits in {facts.name}",
            hint="Is it the index of this collection?",
        )
    tried = settings(len(names), fusions)
    on_step(f"fusing in {len(tried):,} ways")
    asked = themselves(
        {query: dict.fromkeys(one.ids, 0.0) for query, one in found.items()}, collection, qrels
    )
    values = measured(found, tried, qrels, asked=asked)
    report = _report(names, tried, values, found, qrels, asked, fusions, sides, folds)
    report.cluster = {"distribution": "opensearch", "version": kind_of(client).number}
    report.index = {**facts.to_dict()}
    report.collection = {"name": collection.name, "split": collection.split, "queries": len(judged)}
    report.search["by"] = by or ("tokens" if encoder is not None and model_id is None else "model")
    report.warnings += [f"{told}: the figures are not those of this collection" for told in documents.told]
    if asked:
        report.warnings.append(found_themselves(len(asked)))
    if was_written(client, facts):
        report.warnings.append(
            "the index was written to meanwhile: the figures may be of different documents"
        )
    if facts.search_pipeline:
        report.warnings.append(f"the index's own search pipeline {facts.search_pipeline!r} took no part")
    return report


def _report(
    names: list[str],
    tried: Sequence[FusionSetting],
    values: Values,
    found: Mapping[str, Candidates],
    qrels: Mapping[str, Mapping[str, int]],
    asked: frozenset[str],
    fusions: Sequence[Fusion],
    sides: Hybrid,
    folds: int,
) -> TuneReport:
    queries = list(found)
    means = values.mean(axis=1)
    first = int(np.argmax(means[: len(names)]))
    best_side = tried[first].name(names)

    def against(of: Values) -> Significance:
        ours, theirs = (dict(zip(queries, row, strict=True)) for row in (of, values[first]))
        return paired_bootstrap(ours, theirs, name=best_side)

    def row(number: int) -> TunedRow:
        setting = tried[number]
        (run,) = rankings(found, [setting], max(100, sides.depth))
        curve = []
        if setting.fusion is not None and len(names) == 2:
            of_fusion = [place for place, one in enumerate(tried) if one.fusion in (None, setting.fusion)]
            curve = sorted((tried[place].weights[1], float(means[place])) for place in of_fusion)
        own = [place for place, one in enumerate(tried) if one.fusion == setting.fusion]
        held = values[number] if setting.fusion is None else cross_validated(values[own], folds).values
        significance = None if number == first else against(held)
        measures = quality(run, qrels, MEASURES, asked=asked).mean
        return TunedRow(setting.name(names), setting, measures, float(held.mean()), curve, significance)

    alone = sorted(range(len(names)), key=lambda number: -means[number])
    bests = []
    for fusion in fusions:
        places = [place for place, one in enumerate(tried) if one.fusion == fusion]
        bests.append(max(places, key=lambda place: means[place]))
    bests.sort(key=lambda number: -means[number])
    held = cross_validated(values, folds)
    best = tried[bests[0]]
    return TuneReport(
        created=now(),
        cluster={},
        index={},
        collection={},
        search={"pagination_depth": sides.depth, "folds": folds, "settings": len(tried)},
        sides=names,
        alone=[row(number) for number in alone],
        fused=[row(number) for number in bests],
        held_out=float(held.values.mean()),
        chosen=[tried[number].name(names) for number in held.chosen],
        significance=against(held.values),
        hybrid=sides.fused_by(best.fusion or Fusion(), best.weights),
    )
