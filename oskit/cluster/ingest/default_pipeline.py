"""The pipeline that encodes what others write into an index, made the index's default one."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from oskit.archive.agreement import TOLERANCE, largest_difference
from oskit.cluster.client.failures import cluster_errors
from oskit.cluster.client.retry import impatient
from oskit.cluster.index.existing import ExistingIndex, existing_index, look
from oskit.cluster.index.mapping import IndexInfo
from oskit.cluster.index.passages import texts_of
from oskit.cluster.index.pipeline import (
    Pipeline,
    PipelineChange,
    called_first,
    encoding_pipeline,
    pipeline_name,
    writes_vectors,
)
from oskit.cluster.index.sparse_fields import vectors_of
from oskit.cluster.ingest.encoders import check_vectors, find_encoder_model
from oskit.cluster.ingest.plan import PIPELINE_BATCH_SIZE
from oskit.cluster.models.predict import await_ready, predict
from oskit.cluster.models.registry import ModelInfo, list_models
from oskit.errors import IndexingError, OskitError

if TYPE_CHECKING:
    from opensearchpy import OpenSearch

DEFAULT, FINAL = "index.default_pipeline", "index.final_pipeline"

_TEXT = "quick brown fox . jumps"
"""A text with a token that the processor takes for the dots of names."""


@dataclass(frozen=True)
class Put:
    """What :func:`put_pipeline` has done.

    Attributes:
        index: The index itself.
        pipeline: The name of its default pipeline.
        model: Encodes.
        changed: Whether anything was.
        replaced: The default pipeline that it had.
        calls: The pipeline of others that runs first, within it.
    """

    index: str
    pipeline: str
    model: str
    changed: bool
    replaced: str | None = None
    calls: str | None = None


def pipeline_of(existing: ExistingIndex, setting: str = DEFAULT) -> str | None:
    """The pipeline that an index runs by itself; None if there is none."""
    name = existing.settings.get(setting)
    return None if name in (None, "_none") else name


def writable_info(existing: ExistingIndex) -> IndexInfo:
    """How an index was made, if a pipeline can encode for it.

    Raises:
        IndexingError: It cannot, or which fields hold the text is not known.
    """
    info = existing.info
    if existing.is_semantic:
        raise IndexingError(
            f"{info.name!r} has the semantic field {info.text_field!r}, which encodes by itself",
            hint="It needs no pipeline",
        )
    if info.nested:
        raise IndexingError(
            f"the documents of {info.name!r} are in parts ({info.nested}), and no pipeline splits texts as "
            "oskit does",
            hint=f"Let oskit ingest write them, or split them yourself and write {info.nested}",
        )
    if info.kind == "rank_features" and info.key == "id":
        raise IndexingError(
            f"{info.name!r} is keyed by token ids, and a pipeline writes token texts into rank_features",
            hint="Let oskit ingest --encode client write it, or make a sparse_vector index",
        )
    if not texts_of(info)[1]:
        raise IndexingError(
            f"which fields of {info.name!r} hold the text is not known",
            hint=f"Say it once: oskit index adopt {info.name} --text-field NAME",
        )
    return info


def put_pipeline(
    client: OpenSearch,
    index: str,
    *,
    model_id: str | None = None,
    batch_size: int | None = None,
    replace_others: bool = False,
    notify: Callable[[str], object] | None = None,
) -> Put:
    """Let an index encode what others write into it; nothing is changed where that does not work.

    Args:
        index: Its name, or that of an alias: then its write index.
        model_id: Name or id of the model; without it the one that made the index.
        batch_size: Documents that the pipeline hands to the model together.
        replace_others: A pipeline of this name that is not oskit's gives way; so does a default one, which
            oskit's then calls first, unless it makes vectors itself.
        notify: Told, in one line, that the model is being waited for.

    Raises:
        IndexingError: Index, model or another pipeline does not fit, or the cluster refuses.
        ModelError: There is no such model.
    """
    existing = existing_index(client, index, writing=True)
    existing.check_open("put a pipeline on")
    info = writable_info(existing)
    model = _model(client, info, model_id)
    await_ready(client, model, notify=notify)
    if not (info.encoder.sha256 and info.encoder.sha256 == model.sha256):
        check_vectors(client, info, lambda texts: predict(client, model, texts, key=info.key))
    name, before = pipeline_name(info.name), pipeline_of(existing)
    if before not in (None, name) and not replace_others:
        raise IndexingError(
            f"{info.name!r} has the default pipeline {before!r}, which was not made by oskit",
            hint="Let it give way with --replace: oskit's calls it first, unless it makes vectors itself",
        )
    theirs = called_first(client, info.name) if before == name else before
    if theirs is not None and writes_vectors(client, theirs, info) is not False:
        theirs = None  # it makes vectors, too, or is not there
    change = encoding_pipeline(
        client,
        info,
        model.model_id,
        batch_size=batch_size or PIPELINE_BATCH_SIZE,
        prune=info.prune,
        replace=replace_others,
        theirs=theirs,
    )
    _check_that_it_encodes(client, info, change, model)
    try:
        change.make(client)
        if before != name:
            _set_default(client, info.name, name)
    except BaseException:
        _undo(client, info.name, change, before)
        raise
    return Put(
        info.name,
        name,
        model.model_id,
        change.before != change.after or before != name,
        before if before != name else None,
        theirs,
    )


def simulate(
    client: OpenSearch, index: str, name: str, sources: list[dict[str, Any]], pipeline: Pipeline | None = None
) -> list[Any]:
    """What a pipeline makes of documents: their sources, or an error's words; nothing is stored.

    Args:
        name: Of the pipeline.
        pipeline: As it shall be, where it is not stored yet.

    Raises:
        IndexingError: The cluster refuses.
    """
    docs = [{"_index": index, "_id": str(n), "_source": source} for n, source in enumerate(sources)]
    with cluster_errors(f"try the ingest pipeline {name!r}", IndexingError):
        if pipeline is None:
            answer = client.ingest.simulate(id=name, body={"docs": docs})
        else:
            answer = client.ingest.simulate(body={"pipeline": pipeline, "docs": docs})
    return [_simulated(doc) for doc in answer["docs"]]


def _simulated(doc: dict[str, Any]) -> Any:
    if "error" in doc:
        error = doc["error"]
        causes = [cause.get("reason", "") for cause in error.get("root_cause") or ()]
        return str(next(filter(None, causes), error.get("reason") or "refused"))
    return (doc.get("doc") or {}).get("_source")


def written(info: IndexInfo, text: str, title: str = "") -> dict[str, Any]:
    """A document as an application writes it."""
    title_field, texts = texts_of(info)
    source: dict[str, Any] = {}
    for path, value in [(texts[0], text), *([(title_field, title)] if title_field and title else [])]:
        inside = source
        *objects, last = path.split(".")
        for part in objects:
            inside = inside.setdefault(part, {})
        inside[last] = value
    return source


def _model(client: OpenSearch, info: IndexInfo, name_or_id: str | None) -> ModelInfo:
    encoder = info.encoder
    if name_or_id is not None:
        return find_encoder_model(client, name_or_id)
    if encoder.model_id or encoder.sha256:
        models = [
            model
            for model in list_models(client)
            if model.model_id == encoder.model_id or (encoder.sha256 and model.sha256 == encoder.sha256)
        ]
        models.sort(key=lambda model: (not model.is_deployed, model.model_id != encoder.model_id))
        if models:
            return find_encoder_model(client, models[0].model_id)
    raise IndexingError(
        f"which deployed model made the vectors of {info.name!r} is not known", hint="Give it with --model"
    )


def _check_that_it_encodes(
    client: OpenSearch, info: IndexInfo, change: PipelineChange, model: ModelInfo
) -> None:
    """Raises IndexingError unless a document that comes back has the vector of its new text."""
    old = {"1": 1.0} if info.key == "id" else {".": 1.0, "a.": 2.0}
    source = {**written(info, _TEXT), info.embedding_field: old}
    (found,) = simulate(client, info.name, change.name, [source], change.after)
    if isinstance(found, dict):
        (wanted,) = predict(client, model, [_TEXT], key=info.key)
        given = vectors_of(found, info.embedding_field)
        pruned = bool(info.prune)
        if given and largest_difference(wanted, given[0], pruned=pruned)[1] <= TOLERANCE:
            return
        found = "it gives a document other weights than the model"
    raise IndexingError(
        f"the ingest pipeline {change.name!r} does not do what it should: {found}",
        hint="Look at what others have added to it: oskit pipeline show",
    )


def _set_default(client: OpenSearch, index: str, name: str | None) -> None:
    with cluster_errors(f"set the default pipeline of {index!r}", IndexingError):
        client.indices.put_settings(index=index, body={DEFAULT: name})


def _undo(client: OpenSearch, index: str, change: PipelineChange, before: str | None) -> None:
    """Put back what was there; the default first, as a pipeline that is one cannot be deleted."""
    with suppress(OskitError), impatient(client):
        now = look(client, index)
        if now is not None and pipeline_of(now) == change.name != before:
            _set_default(client, index, before)
    with suppress(OskitError), impatient(client):
        replace(change, before=change.after, after=change.before).make(client)


def show_pipelines(client: OpenSearch, index: str) -> dict[str, Any]:
    """The ingest pipelines of an index: which run by themselves, oskit's, and what they are; for JSON.

    Raises:
        IndexingError: There is no such index, or the cluster refuses.
    """
    existing = existing_index(client, index, writing=True)
    default, final, own = pipeline_of(existing), pipeline_of(existing, FINAL), pipeline_name(existing.name)
    names = dict.fromkeys(filter(None, (default, final, own)))
    with cluster_errors(f"read the ingest pipelines of {existing.name!r}", IndexingError):
        bodies = {name: client.ingest.get_pipeline(id=name, ignore=404).get(name) for name in names}
    return {"index": existing.name, "default": default, "final": final, "own": own, "pipelines": bodies}
