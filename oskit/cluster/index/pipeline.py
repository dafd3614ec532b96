"""The ingest pipeline that encodes an index's passages on the cluster: ours, and what others add to it stays.

OpenSearch takes no key of ours in a pipeline, so its description is the mark, and tags are the marks of our
processors. A pipeline that carries other processors or keys too is one that somebody has extended: only the
parameters of ours change in it, and it is never deleted.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from opensearchpy.exceptions import AuthorizationException, NotFoundError

from oskit.cluster.client.calls import Call
from oskit.cluster.client.failures import cluster_errors
from oskit.cluster.index.passages import BUILDS, TEMPORARY, builder, passage_of
from oskit.errors import IndexingError

if TYPE_CHECKING:
    from opensearchpy import OpenSearch

    from oskit.cluster.index.mapping import IndexInfo

Pipeline = dict[str, Any]

ENCODES, LEAVES_OUT, THEIRS = "oskit", "oskit-no-empty-vector", "oskit-default-pipeline"
"""Tags of our processors, which stand behind the one of :mod:`oskit.cluster.index.passages`."""

_TEMPLATES = "metadata.templates,metadata.index_template,metadata.component_template"
"""Of the cluster's state, what can name a pipeline."""

# The processor makes {} of a text without tokens. As a field's first value that settles for good that the
# field has no postings, and sparse_vector refuses every later vector. The path is a parameter, since a
# field's name may hold what `remove` takes for a template.
_LEAVE_OUT = (
    "def here = ctx; int last = params.path.size() - 1; "
    "for (int i = 0; i < last; i++) { here = here instanceof Map ? here[params.path[i]] : null; } "
    "if (here instanceof Map && here[params.path[last]] instanceof Map && here[params.path[last]].isEmpty()) "
    "{ here.remove(params.path[last]); }"
)

_LEAVE_OUT_OF_CHUNKS = (
    "def chunks = ctx[params.path[0]]; if (chunks instanceof List) { for (def chunk : chunks) { "
    "if (chunk instanceof Map && chunk[params.path[1]] instanceof Map && chunk[params.path[1]].isEmpty()) "
    "{ chunk.remove(params.path[1]); } } }"
)


def pipeline_name(index: str) -> str:
    """The ingest pipeline that belongs to an index."""
    return f"{index}-sparse-encoding"


def pipeline_mark(index: str) -> str:
    """The description of that pipeline, by which it is known as ours."""
    return f"oskit: sparse vectors for the index {index}"


@dataclass(frozen=True)
class PipelineChange:
    """An index's pipeline as it is, and as it shall be.

    Attributes:
        name: Its name.
        before: None if there is none.
        after: None if it is to be deleted.
    """

    name: str
    before: Pipeline | None
    after: Pipeline | None

    def calls(self) -> list[Call]:
        """What :meth:`make` sends."""
        if self.before == self.after:
            return []
        path = f"_ingest/pipeline/{self.name}"
        return [Call("DELETE", path) if self.after is None else Call("PUT", path, self.after)]

    @property
    def matters(self) -> bool:
        """Whether documents come out otherwise; another load may hand other numbers of them to the model."""
        return _without(self.before, "batch_size") != _without(self.after, "batch_size")

    @property
    def made_of(self) -> Pipeline | None:
        """What documents go through, whichever id the model has after another deployment."""
        return _encodes_by(self.after)

    def was_changed(self, model_ids: Collection[str | None]) -> bool:
        """Whether somebody had changed what encodes, so that nobody knows what made the vectors.

        Args:
            model_ids: Those that oskit may have written there.
        """
        if self.before is None:
            return False
        steps = self.before.get("processors") or []
        ids = {step["sparse_encoding"].get("model_id") for step in steps if _is_tagged(step, ENCODES)}
        return _encodes_by(self.before) != self.made_of or not ids <= set(model_ids)

    def make(self, client: OpenSearch) -> None:
        """Make the change.

        Raises:
            IndexingError: The cluster refuses.
        """
        if self.before == self.after:
            return
        verb = "delete" if self.after is None else "create" if self.before is None else "change"
        with cluster_errors(f"{verb} the ingest pipeline {self.name!r}", IndexingError):
            if self.after is None:
                client.ingest.delete_pipeline(id=self.name, ignore=404)
            else:
                client.ingest.put_pipeline(id=self.name, body=self.after)


def encoding_pipeline(
    client: OpenSearch,
    info: IndexInfo,
    model_id: str,
    *,
    batch_size: int = 1,
    prune: str | None = None,
    was: IndexInfo | None = None,
    replace: bool = False,
    theirs: str | None = None,
) -> PipelineChange:
    """How the pipeline that encodes an index's passages is to be changed.

    Args:
        info: The index.
        model_id: A deployed sparse encoder.
        batch_size: Passages that the processor hands to the model at once.
        prune: Which weights to keep, as ``TYPE:RATIO``.
        was: How the index was that this one takes the place of.
        replace: One of that name that is not ours gives way.
        theirs: The index's default pipeline, which ours takes the place of and so calls.

    Raises:
        IndexingError: There is one of that name that is not ours, or the cluster refuses.
    """
    name = pipeline_name(info.name)
    before = _read(client, name)
    if before is None:
        return PipelineChange(name, None, _fresh(info, model_id, batch_size, prune, theirs))
    at = _own_processor(before, info, was) if before.get("description") == pipeline_mark(info.name) else None
    if at is None and replace:
        return PipelineChange(name, before, _fresh(info, model_id, batch_size, prune, theirs))
    if at is None:
        raise IndexingError(
            f"the ingest pipeline {name!r} was not made by oskit, or its encoder was taken out, so it is "
            "neither changed nor used",
            hint=f"Rename or delete it (DELETE _ingest/pipeline/{name}), choose another name for the index, "
            "or use --encode client",
        )
    after = copy.deepcopy(before)
    ours = after["processors"][at]["sparse_encoding"]
    gone = [mapped for index in (info, was) if index is not None for mapped in _field_map(index).values()]
    fields = {key: value for key, value in ours["field_map"].items() if value not in gone}
    for parameter in ("prune_type", "prune_ratio"):
        ours.pop(parameter, None)
    ours |= _encodes(info, model_id, batch_size, prune)
    ours["field_map"] = {**fields, **ours["field_map"]}
    own = (LEAVES_OUT, BUILDS, THEIRS)
    rest = [step for step in after["processors"] if not any(_is_tagged(step, tag) for tag in own)]
    at = rest.index(after["processors"][at])
    steps = [*rest[:at], builder(info), rest[at], *_leaves_out(info), *rest[at + 1 :]]
    is_called = any((step.get("pipeline") or {}).get("name") == theirs for step in steps)
    after["processors"] = [*_calls(None if is_called else theirs), *steps]
    return PipelineChange(name, before, after)


def no_pipeline(client: OpenSearch, index: str) -> PipelineChange:
    """How an index's pipeline is to be deleted, if it is ours alone and nobody else uses it.

    Raises:
        IndexingError: The cluster refuses.
    """
    name = pipeline_name(index)
    before = _read(client, name)
    keep = before is None or not _is_ours_alone(before, index) or is_named(client, name, index)
    return PipelineChange(name, before, before if keep else None)


def _read(client: OpenSearch, name: str) -> Pipeline | None:
    with cluster_errors(f"read the ingest pipeline {name!r}", IndexingError):
        found: Pipeline | None = client.ingest.get_pipeline(id=name, ignore=404).get(name)
    return found


def called_first(client: OpenSearch, index: str) -> str | None:
    """The pipeline of others that an index's own calls, having taken its place; None if there is none.

    Raises:
        IndexingError: The cluster refuses.
    """
    steps = (_read(client, pipeline_name(index)) or {}).get("processors") or []
    return next((step["pipeline"]["name"] for step in steps if _is_tagged(step, THEIRS)), None)


def writes_vectors(client: OpenSearch, name: str, info: IndexInfo, seen: Collection[str] = ()) -> bool | None:
    """Whether a pipeline, or one that it calls, makes an index's vectors; None if there is none.

    Raises:
        IndexingError: The cluster refuses.
    """
    if (pipeline := _read(client, name)) is None:
        return None
    for step in pipeline.get("processors") or []:
        for kind, own in step.items():
            if info.embedding_field in (own.get("field_map") or {}).values():
                return True
            called = own.get("name") if kind == "pipeline" else None
            if called == pipeline_name(info.name):  # which may not be there yet
                return True
            if called and called not in seen and writes_vectors(client, called, info, {*seen, name}):
                return True
    return False


def _calls(theirs: str | None) -> list[dict[str, Any]]:
    return [{"pipeline": {"tag": THEIRS, "name": theirs}}] if theirs else []


def _fresh(
    info: IndexInfo, model_id: str, batch_size: int, prune: str | None, theirs: str | None
) -> Pipeline:
    encodes = {"sparse_encoding": _encodes(info, model_id, batch_size, prune)}
    steps = [*_calls(theirs), builder(info), encodes, *_leaves_out(info)]
    return {"description": pipeline_mark(info.name), "processors": steps}


def _encodes(info: IndexInfo, model_id: str, batch_size: int, prune: str | None) -> dict[str, Any]:
    own: dict[str, Any] = {
        "tag": ENCODES,
        "model_id": model_id,
        "field_map": _field_map(info),
        "batch_size": batch_size,
    }
    if prune is not None:
        kind, _, ratio = prune.partition(":")
        own |= {"prune_type": kind, "prune_ratio": float(ratio)}
    return own


def _field_map(info: IndexInfo) -> dict[str, Any]:
    """From texts to vectors; those of chunks as objects, since dots would lead elsewhere (3.6)."""
    if not info.nested:
        return {passage_of(info): info.embedding_field}
    return {info.nested: {"text": info.embedding_name}}


def _leaves_out(info: IndexInfo) -> list[dict[str, Any]]:
    steps: list[dict[str, Any]] = []
    if not info.nested and passage_of(info) == TEMPORARY:
        steps.append({"remove": {"tag": LEAVES_OUT, "field": TEMPORARY, "ignore_missing": True}})
    if info.kind == "sparse_vector":  # rank_features take {}
        source = _LEAVE_OUT_OF_CHUNKS if info.nested else _LEAVE_OUT
        params = {"path": info.embedding_field.split(".")}
        steps.append({"script": {"tag": LEAVES_OUT, "lang": "painless", "source": source, "params": params}})
    return steps


def _own_processor(pipeline: Pipeline, info: IndexInfo, was: IndexInfo | None) -> int | None:
    """Where our encoder stands: by its tag, or, made by an earlier oskit, by its fields."""
    steps = pipeline.get("processors") or []
    fields = [(index.passage_field, index.embedding_field) for index in (info, was) if index is not None]
    for at, step in enumerate(steps):
        if "sparse_encoding" in step and _is_tagged(step, ENCODES):
            return at
    for at, step in enumerate(steps):
        own = (step.get("sparse_encoding") or {}).get("field_map") or {}
        if any(own.get(passage) == embedding for passage, embedding in fields):
            return at
    return None


def _without(pipeline: Pipeline | None, *parameters: str) -> Pipeline | None:
    after = copy.deepcopy(pipeline)
    for step in (after or {}).get("processors", ()):
        if _is_tagged(step, ENCODES):
            for parameter in parameters:
                step["sparse_encoding"].pop(parameter, None)
    return after


def _encodes_by(pipeline: Pipeline | None) -> Pipeline | None:
    """What oskit's own documents go through: they bring their passages, and have no vectors yet."""
    after = _without(pipeline, "batch_size", "model_id")
    if after is not None:
        after["processors"] = [step for step in after.get("processors", ()) if not _is_tagged(step, BUILDS)]
    return after


def _is_tagged(step: Mapping[str, Any], tag: str) -> bool:
    return any(isinstance(own, Mapping) and own.get("tag") == tag for own in step.values())


def _is_ours_alone(pipeline: Pipeline, index: str) -> bool:
    """Whether there is nothing in a pipeline that we did not write."""
    if pipeline.get("description") != pipeline_mark(index) or set(pipeline) - {"description", "processors"}:
        return False
    steps = pipeline.get("processors") or []
    first, *rest = [
        step for step in steps if not _is_tagged(step, BUILDS) and not _is_tagged(step, THEIRS)
    ] or [{}]
    own = first.get("sparse_encoding") or {}
    known = {"tag", "model_id", "field_map", "batch_size", "prune_type", "prune_ratio"}
    return (
        len(own.get("field_map") or {}) == 1
        and set(own) <= known
        and all(_is_tagged(step, LEAVES_OUT) for step in rest)
    )


def is_named(client: OpenSearch, name: str, index: str) -> bool:
    """Whether anything but its own index names a pipeline: an index, an index template, another pipeline.

    Where nobody may see the templates, one may name it.

    Raises:
        IndexingError: The cluster refuses.
    """
    names = "index.default_pipeline,index.final_pipeline"
    with cluster_errors(f"see who uses the ingest pipeline {name!r}", IndexingError):
        indexes = client.indices.get_settings(index="*", name=names, params={"expand_wildcards": "all"})
        pipelines = client.ingest.get_pipeline(id="*", ignore=404)
        try:
            templates = client.cluster.state(metric="metadata", params={"filter_path": _TEMPLATES})
        except AuthorizationException:
            return True
        except NotFoundError:  # of a service without such a path
            templates = {}
    indexes.pop(index, None)
    pipelines.pop(name, None)
    return json.dumps(name) in json.dumps([indexes, pipelines, templates])
