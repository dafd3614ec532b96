"""What earlier versions of oskit left in a cluster, and the calls that mend it.

Only what carries our mark is looked at, and only what stands still is mended: everything is read twice, a
moment apart, and what differs is somebody's work. Nothing is taken out of memory.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from opensearchpy.exceptions import NotFoundError

from oskit.cluster.client.calls import Call
from oskit.cluster.client.failures import cluster_errors
from oskit.cluster.index.existing import look
from oskit.cluster.index.kept import kept_of
from oskit.cluster.index.meta import change_own_meta, changed_meta, own_meta
from oskit.cluster.index.pipeline import is_named, pipeline_mark, pipeline_name
from oskit.cluster.index.trials import is_abandoned, trials
from oskit.cluster.models.registry import (
    EXPORTED,
    delete_empty_group,
    get_model,
    has_own_group,
    list_models,
    quoted,
    search,
)
from oskit.doctor.finding import Finding
from oskit.errors import OskitError

if TYPE_CHECKING:
    from opensearchpy import OpenSearch

STILL_S = 3.0
"""How long what is mended must have stood still, in seconds."""

ABANDONED_AFTER = timedelta(hours=1)
"""Age of an upload that nobody goes on with."""

INTERVAL_BEFORE = "refresh_interval_before"
"""Where loads of earlier versions kept an index's ``refresh_interval`` while they paused it."""

_ALL = {"expand_wildcards": "all"}


@dataclass(frozen=True)
class Leftover:
    """Something that nobody needs as it is.

    Attributes:
        name: What it is.
        detail: What is wrong with it.
        calls: What ``--fix`` sends; nothing where somebody has to decide.
        advice: What to do otherwise.
        activity: What changes while somebody works with it; None if somebody does right now.
        index: Whose entries of ``_meta.oskit`` are changed.
        entries: The changes.
    """

    name: str
    detail: str
    calls: tuple[Call, ...] = ()
    advice: str | None = None
    activity: tuple[int, ...] | None = ()
    index: str = ""
    entries: Mapping[str, Any] = field(default_factory=dict)


def check_leftovers(client: OpenSearch, *, fix: bool = False) -> list[Finding]:
    """What is left behind; each with the calls that mend it, which ``fix`` sends."""
    try:
        found = first = _look(client)
        if any(leftover.calls for leftover in first):
            time.sleep(STILL_S)
            found = _look(client)
    except OskitError as error:
        return [Finding("cluster", "leftovers", "skipped", error.message, error.hint)]
    if not found:
        return [Finding("cluster", "leftovers", "ok", "earlier versions of oskit left nothing behind")]
    return [_finding(client, leftover, leftover in first, fix) for leftover in found]


def _finding(client: OpenSearch, leftover: Leftover, known: bool, fix: bool) -> Finding:
    name, detail = leftover.name, leftover.detail
    if not leftover.calls:
        return Finding("cluster", name, "warning", detail, leftover.advice)
    if not known or leftover.activity is None:
        advice = "Somebody works with it right now: look again when that is over"
        return Finding("cluster", name, "warning", detail, advice)
    calls = "; ".join(map(str, leftover.calls))
    if not fix:
        return Finding("cluster", name, "warning", detail, f"--fix sends: {calls}")
    try:
        with cluster_errors(f"mend the {name}"):
            for call in leftover.calls:
                _send(client, leftover, call)
    except OskitError as error:
        return Finding("cluster", name, "failure", f"{detail}; not mended: {error.message}", error.hint)
    return Finding("cluster", name, "ok", f"{detail}; mended: {calls}")


def _send(client: OpenSearch, leftover: Leftover, call: Call) -> None:
    kind, _, last = call.path.rpartition("/")
    if last == "_mapping":
        change_own_meta(client, leftover.index, leftover.entries)
    elif kind.endswith("/model_groups"):
        delete_empty_group(client, last)
    else:
        # 404: it went meanwhile; ML Commons answers so even where it has deleted the chunks of a lost model
        with suppress(NotFoundError):
            client.transport.perform_request(call.method, f"/{call.path}", body=call.body)


def _look(client: OpenSearch) -> list[Leftover]:
    with cluster_errors("look for what was left behind"):
        return [
            *_intervals(client),
            *_lost_models(client),
            *_trials(client),
            *_pipelines(client),
            *_uploads(client),
        ]


def _own_indexes(client: OpenSearch) -> dict[str, dict[str, Any]]:
    """Mappings of our indexes, open or not, with nothing but their ``_meta``."""
    answer = _get(client, "/_mapping", filter_path="*.mappings._meta", **_ALL)
    return {name: found["mappings"] for name, found in answer.items() if own_meta(found["mappings"])}


def _settings(client: OpenSearch, *names: str) -> dict[str, dict[str, Any]]:
    """Those settings of every index that has one of them."""
    answer = _get(client, f"/_settings/{','.join(names)}", flat_settings="true", **_ALL)
    return {index: found["settings"] for index, found in answer.items()}


def _get(client: OpenSearch, path: str, **params: str) -> dict[str, Any]:
    try:
        answer: dict[str, Any] = client.transport.perform_request("GET", path, params=params)
    except NotFoundError:  # there are none
        return {}
    return answer


def _intervals(client: OpenSearch) -> Iterator[Leftover]:
    """Indexes whose refresh a load paused that no longer runs."""
    setting = "index.refresh_interval"
    now = {index: settings.get(setting) for index, settings in _settings(client, setting).items()}
    stats: dict[str, Any] = {}
    for index, mapping in _own_indexes(client).items():
        before = own_meta(mapping).get(INTERVAL_BEFORE)
        calls = []
        if now.get(index) == "-1":
            # A load that came second recorded the first one's -1.
            recorded = isinstance(before, str) and before != "-1"
            wanted = before if recorded and before != "default" else None
            calls.append(Call("PUT", f"{quoted(index)}/_settings", {"index": {"refresh_interval": wanted}}))
            detail = "its refresh is off (refresh_interval -1), and no load pauses it any more: "
            detail += f"it was {before}" if recorded else "what it was is not recorded, so the default it is"
        elif before is not None:
            detail = f"a load's note of its refresh_interval, {before}, is left; it is {now.get(index)} now"
        else:
            continue
        entries = {INTERVAL_BEFORE: None} if before is not None else {}
        if entries:
            calls.append(_meta_call(index, mapping, entries))
        stats = stats or _get(
            client, "/_stats/docs,indexing", expand_wildcards="open,hidden", filter_path="indices.*.primaries"
        )
        activity = _writing(stats.get("indices", {}).get(index))
        yield Leftover(f"index {index!r}", detail, tuple(calls), None, activity, index, entries)


def _meta_call(index: str, mapping: Mapping[str, Any], entries: Mapping[str, Any]) -> Call:
    return Call("PUT", f"{quoted(index)}/_mapping", changed_meta(mapping, entries))


def _writing(stats: Mapping[str, Any] | None) -> tuple[int, ...] | None:
    """Counts that grow while documents come; None while some are being written; a closed index has none."""
    if stats is None:
        return ()
    docs, indexing = stats["primaries"]["docs"], stats["primaries"]["indexing"]
    if indexing["index_current"] or indexing["delete_current"]:
        return None
    return docs["count"], indexing["index_total"], indexing["delete_total"]


def _lost_models(client: OpenSearch) -> Iterator[Leftover]:
    """Indexes that name a model which is gone, and the model that has its place, if there is one."""
    indexes = {index: (mapping, own_meta(mapping)) for index, mapping in _own_indexes(client).items()}
    named = {own[key] for _, own in indexes.values() for key in ("model_id", "query_model_id") if key in own}
    if not named:
        return
    models = list_models(client)
    gone = {id_ for id_ in named - {model.model_id for model in models} if get_model(client, id_) is None}
    by_content = {model.sha256: model.model_id for model in models if model.is_deployed and model.sha256}
    for index, (mapping, own) in indexes.items():
        for key, content in (("model_id", "encoder_sha256"), ("query_model_id", "query_sha256")):
            lost, name = str(own.get(key)), f"{key} of the index {index!r}"
            if lost not in gone:
                continue
            if (there := by_content.get(str(own.get(content)))) is None:
                yield Leftover(
                    name,
                    f"the model {lost} is gone, and none of its content is deployed: "
                    "searches by model are refused, those with --archive or an analyzer go on",
                    advice="Deploy its archive again, and name the new model by --fix",
                )
                continue
            entries = {key: there}
            calls = [_meta_call(index, mapping, entries)]
            pipeline = pipeline_name(index)
            path = f"_ingest/pipeline/{quoted(pipeline)}"
            body = _get(client, f"/{path}").get(pipeline, {})
            if _index_of(pipeline, body) and json.dumps(lost) in (text := json.dumps(body)):
                calls.append(Call("PUT", path, json.loads(text.replace(json.dumps(lost), json.dumps(there)))))
            detail = f"the model {lost} is gone; {there} is deployed with the same content"
            yield Leftover(name, detail, tuple(calls), index=index, entries=entries)


def _index_of(pipeline: str, body: Mapping[str, Any]) -> str | None:
    """The index that a pipeline of ours was made for, as its mark says; None if it is somebody else's."""
    index = pipeline.removesuffix(pipeline_name(""))
    return index if body.get("description") == pipeline_mark(index) else None


def _trials(client: OpenSearch) -> Iterator[Leftover]:
    """Trials of ``--recreate`` whose process was killed."""
    for trial, own in trials(client).items():
        index = str(own.get("for"))
        detail = f"a trial of `oskit ingest --recreate` of the index {index!r}"
        now, kept = look(client, index), kept_of(client, index)
        is_old = now is not None and now.uuid == own.get("uuid")
        if "aliases" in own and (kept is not None or now is None or is_old):
            aliases = ", ".join(own["aliases"] or ()) or "none"
            back = (
                "lets others write into it again"
                if is_old
                else f"puts back what {kept.name!r} has of it"
                if kept
                else f"makes it anew, and brings its aliases back ({aliases})"
            )
            yield Leftover(
                f"index {trial!r}",
                f"{detail}, which was cut off {'before' if is_old else 'when'} that was deleted",
                advice=f"The next oskit ingest into {index!r} {back}",
            )
            continue
        calls = [Call("DELETE", quoted(trial))]
        pipeline = pipeline_name(trial)
        if _index_of(pipeline, _get(client, f"/_ingest/pipeline/{quoted(pipeline)}").get(pipeline, {})):
            calls.append(Call("DELETE", f"_ingest/pipeline/{quoted(pipeline)}"))
        if is_abandoned(client, trial, own):
            yield Leftover(f"index {trial!r}", f"{detail}, which has ended", tuple(calls))
        else:
            advice = "It goes when that ends; --fix deletes it if its process is gone, or it is an hour old"
            yield Leftover(f"index {trial!r}", detail, advice=advice)


def _pipelines(client: OpenSearch) -> Iterator[Leftover]:
    """Pipelines of ours whose index is gone, and which nothing else names."""
    pipelines = _get(client, "/_ingest/pipeline")
    marked = {name: index for name, body in pipelines.items() if (index := _index_of(name, body))}
    orphans = {
        name: index for name, index in marked.items() if not client.indices.exists(index=index, **_ALL)
    }
    if not orphans:
        return
    stats = _get(client, "/_nodes/stats/ingest", filter_path="nodes.*.ingest.pipelines")
    for name, index in orphans.items():
        if is_named(client, name, index):
            continue
        runs = [node["ingest"]["pipelines"].get(name, {}) for node in stats.get("nodes", {}).values()]
        running = any(run.get("current") for run in runs)
        yield Leftover(
            f"ingest pipeline {name!r}",
            "its index is gone, and no other index, template or pipeline names it",
            (Call("DELETE", f"_ingest/pipeline/{quoted(name)}"),),
            activity=None if running else (sum(run.get("count", 0) for run in runs),),
        )


def _uploads(client: OpenSearch) -> Iterator[Leftover]:
    """Models of ours that were never uploaded whole, and chunks whose model is gone."""
    parts = search(client, "models", query={"exists": {"field": "chunk_number"}}, _source=["model_id"])
    chunks = Counter(str(hit["_source"]["model_id"]) for hit in parts)
    half = search(
        client,
        "models",
        query={"term": {"model_state": "REGISTERING"}},
        _source=["name", "description", "created_time", "total_chunks", "model_group_id"],
    )
    for hit in half:
        model = hit["_source"]
        if EXPORTED not in str(model.get("description")):
            continue
        began = datetime.fromtimestamp(model["created_time"] / 1000, UTC)
        present = chunks[hit["_id"]]
        detail = (
            f"{model['name']!r} is half uploaded: {present} of {model.get('total_chunks')} chunks, "
            f"begun {began:%Y-%m-%d %H:%M} UTC"
        )
        calls = [Call("DELETE", f"_plugins/_ml/models/{hit['_id']}")]
        group = str(model.get("model_group_id"))
        if has_own_group(client, group, model["name"]):
            note = "unless it holds other models"
            calls.append(Call("DELETE", f"_plugins/_ml/model_groups/{group}", note=note))
        abandoned = datetime.now(UTC) - began > ABANDONED_AFTER
        yield Leftover(
            f"model {hit['_id']}",
            detail,
            tuple(calls) if abandoned else (),
            "The same oskit deploy goes on with it; --fix deletes it once it is an hour old",
            (present,),
        )
    known = {model.model_id for model in list_models(client)}
    for model_id in sorted(chunks.keys() - known):
        if get_model(client, model_id) is None:
            call = Call("DELETE", f"_plugins/_ml/models/{model_id}")
            detail = f"it is gone, and {chunks[model_id]} of its chunks are left"
            yield Leftover(f"model {model_id}", detail, (call,), activity=(chunks[model_id],))
