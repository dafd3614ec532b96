"""What a load will do to the cluster: models and index are looked at, and what does not fit is refused.

Nothing is changed here, so a refusal leaves everything as it was; and a dry run tells the calls.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from oskit.archive.token_weights import Prune
from oskit.cluster.client.calls import Call
from oskit.cluster.index.existing import ExistingIndex, look
from oskit.cluster.index.given import check_analyzer, digest_of, expanded, flat_settings, unmapped
from oskit.cluster.index.mapping import (
    MARK_BODY,
    EncodeMode,
    EncoderIdentity,
    IndexInfo,
    IndexSettings,
    check_vocabulary,
    index_body,
    key_for,
)
from oskit.cluster.index.meta import changed_meta, own_meta
from oskit.cluster.index.names import Target, check_index_name, resolve
from oskit.cluster.index.pipeline import (
    PipelineChange,
    called_first,
    encoding_pipeline,
    no_pipeline,
    pipeline_name,
    writes_vectors,
)
from oskit.cluster.index.recreate import Trial, calls_of_new
from oskit.cluster.index.sparse_fields import definition_of
from oskit.cluster.index.templates import Template, template_of, under
from oskit.cluster.ingest.cutting import check_chunking
from oskit.cluster.ingest.encoders import (
    Notify,
    check_are_one,
    check_made_by,
    check_stored,
    find_encoder_model,
    identity,
)
from oskit.cluster.ingest.known import ASKED_AT_ONCE, Known, recipe_of
from oskit.cluster.ingest.missing import Missing, Sweeper
from oskit.cluster.ingest.streams import Appended, as_loaded, check_usage
from oskit.cluster.models.registry import ModelInfo, find_model, serving
from oskit.data.documents import MARK_FIELD, Document
from oskit.errors import IndexingError, UsageError

if TYPE_CHECKING:
    from opensearchpy import OpenSearch

    from oskit.archive.text_encoder import KeyFormat, TextEncoder
    from oskit.data.duplicates import SeenTexts

PIPELINE_BATCH_SIZE = 32
"""Documents that an ingest pipeline hands to the model together, where nobody says."""


@dataclass(frozen=True)
class LoadPlan:
    """What a load will do.

    Attributes:
        target: What the name stands for.
        info: How the index shall be.
        settings: How it is created.
        model: Encodes the documents on the cluster.
        existing: The index as it is; None if there is none.
        pipeline: How its ingest pipeline changes; None where none is touched.
        recreate: Whether another index takes the place of the existing one.
        batch_size: Passages that the pipeline hands to the model together.
        theirs: The index's default pipeline, which documents go through as well: it is somebody else's.
        template: What index templates give a new index besides.
    """

    target: Target
    info: IndexInfo
    settings: IndexSettings
    model: ModelInfo | None
    existing: ExistingIndex | None
    pipeline: PipelineChange | None
    recreate: bool
    batch_size: int
    theirs: str | None = None
    template: Template | None = None

    @property
    def pipes(self) -> bool:
        """Whether documents are encoded in a pipeline of ours."""
        return self.model is not None and not self.settings.semantic

    @property
    def runs(self) -> str:
        """The pipeline that documents are sent through; ``_none`` for none."""
        return pipeline_name(self.info.name) if self.pipes else self.theirs or "_none"

    def pipeline_change(self, client: OpenSearch, info: IndexInfo | None = None) -> PipelineChange | None:
        """The pipeline as it is now, and as it shall be for ``info``; None where none is touched.

        Raises:
            IndexingError: It is somebody else's, or the cluster refuses.
        """
        if self.model is None or not self.pipes:
            return no_pipeline(client, self.info.name) if self.existing and self.recreate else None
        was = self.existing.info if self.existing and self.recreate and info is None else None
        chosen = info or self.info
        return encoding_pipeline(
            client,
            chosen,
            self.model.model_id,
            batch_size=self.batch_size,
            prune=chosen.prune,
            was=was,
            theirs=self.theirs,
        )

    def with_fields(self, text: str | None, title: str | None) -> LoadPlan:
        """The same, recording which fields of the documents hold text and title."""
        return replace(self, info=replace(self.info, text_field=text, title_field=title))

    def check_fields(self, client: OpenSearch, first: Document) -> None:
        """Refuse documents that an index which has none yet has no place for.

        Raises:
            UsageError: Its mapping is strict and lacks a field of the first of them.
        """
        name, is_there = self.info.name, self.existing is not None and not self.recreate
        mapping = self.mapping
        if (field := unmapped(mapping, first.source())) is None:
            return
        if is_there and client.count(index=name)["count"]:
            return  # then it may be an exception
        raise UsageError(
            f"{first.where or 'the first document'} would be refused, and so its like: the mapping of "
            f"{name!r} is strict (dynamic) and has no field {field!r}",
            hint=f'Add it ({{"properties": {{"{field}": {{"type": "text"}}}}}}), or set dynamic to false',
        )

    @property
    def mapping(self) -> Mapping[str, Any]:
        """Of the index that is loaded."""
        if self.existing is not None and not self.recreate:
            return self.existing.mapping
        mapping = index_body(self.info, self.settings)["mappings"]
        given = self.template.mapping if self.template is not None else {}
        fields = {**expanded(given.get("properties") or {}), **mapping["properties"]}
        return {**given, **mapping, "properties": fields}

    @property
    def mark_field(self) -> Literal["there", "missing", "taken"]:
        """Whether the index that is loaded can hold marks (:mod:`oskit.cluster.ingest.known`)."""
        if self.existing is None or self.recreate:
            return "there"
        found = definition_of(self.existing.mapping.get("properties") or {}, MARK_FIELD)
        if not found:
            return "missing"
        return "there" if found.get("type") == "keyword" and found.get("doc_values", True) else "taken"

    def check_marks(self, purpose: str) -> None:
        """Refuse what needs marks, where there are none; ``purpose`` as in "cannot ...".

        Raises:
            UsageError: Another index takes the place of the one that is there.
            IndexingError: Nobody knows which documents are oskit's.
        """
        if self.recreate:
            raise UsageError(
                "--delete-missing has no effect with --recreate, which keeps nothing", hint="Give one of them"
            )
        if self.target.parts:
            raise UsageError(f"cannot {purpose}: {self.target} keeps what it has", hint="Leave it out")
        if why := self._unmarked:
            raise IndexingError(f"cannot {purpose}: {why}", hint="Delete it yourself, or use --recreate")

    def missing(self, client: OpenSearch, seen: SeenTexts) -> Missing:
        """Which documents of the index a load of ``seen``, ids of a source, would delete if it may.

        Raises:
            UsageError, IndexingError: As :meth:`check_marks`, or the cluster refuses.
        """
        self.check_marks("tell what the source no longer has")
        return Missing(0, 0) if self.existing is None else Sweeper(client, self.target.index).look(seen)

    @property
    def _unmarked(self) -> str:
        """Why documents get no marks; empty if they do."""
        if self.mark_field == "taken":
            return f"the field {MARK_FIELD!r} of the index is not oskit's"
        if recipe_of(self.info, self.pipeline) is None:
            return "of this encoder nobody knows whether it made the vectors that are there"
        return ""

    def known(self, client: OpenSearch, *, reencode: bool = False, notify: Notify = None) -> Known:
        """What tells which documents the index has already.

        Args:
            reencode: No document counts as there.
            notify: Told, in one line, why none does.
        """
        recipe, window = recipe_of(self.info, self.pipeline), ASKED_AT_ONCE
        if self.target.parts:
            if why := self._unmarked:
                raise IndexingError(f"cannot tell what {self.target} has already: {why}")
            return Appended(client, self.target.asked, recipe, at_once=window)
        if self.existing is not None and not self.recreate:
            window = min(window, int(self.existing.settings.get("index.max_result_window", window)))
        if (why := self._unmarked) and notify is not None:
            notify(f"All documents are encoded: {why}")
        return Known(
            client,
            self.info.name,
            None if why else recipe,
            is_new=self.recreate,
            reencode=reencode,
            at_once=window,
            notify=notify,
        )

    def changed_entries(self) -> dict[str, object]:
        """What the index records now and did not, or otherwise, such as a model that was deployed anew."""
        before = self.existing.info.to_meta() if self.existing and own_meta(self.existing.mapping) else {}
        return {key: value for key, value in self.info.to_meta().items() if value != before.get(key)}

    def calls(self, client: OpenSearch, documents: int, bulk_documents: int) -> list[Call]:
        """Every call that changes something, for so many documents.

        Raises:
            IndexingError: The cluster refuses to tell.
        """
        name = self.info.name
        if self.existing is None:
            calls = calls_of_new(client, self.info, self.settings)
        elif self.recreate:
            trial = Trial(client, self.existing, self.info, self.settings)
            piped = self.pipeline_change(client, trial.info) if self.pipes else None
            calls = trial.calls(piped.calls() if piped else [])
        else:
            entries = self.changed_entries()
            changes = [changed_meta(self.existing.mapping, entries)] if entries else []
            changes += [MARK_BODY] if self.mark_field == "missing" else []
            calls = [Call("PUT", f"{name}/_mapping", body) for body in changes]
        calls += change.calls() if (change := self.pipeline_change(client)) else []
        if documents:
            requests = math.ceil(documents / bulk_documents)
            told = f"{requests:,} times or more, {documents:,} documents in all, but for unchanged ones"
            calls.append(Call("POST", f"{self.target.written}/_bulk?pipeline={self.runs}", note=told))
        return calls


def plan_load(
    client: OpenSearch,
    index: str,
    settings: IndexSettings,
    *,
    encode: EncodeMode = "client",
    encoder: TextEncoder | None = None,
    model_id: str | None = None,
    query_model_id: str | None = None,
    prune: Prune | None = None,
    recreate: bool = False,
    pipeline_batch_size: int | None = None,
    made_by: EncoderIdentity | None = None,
    key: KeyFormat | None = None,
    notify: Notify = None,
) -> LoadPlan:
    """Look at everything that a load needs; see :func:`oskit.cluster.ingest.load.ingest`.

    Raises:
        UsageError: Arguments do not fit together.
        ModelError: There is no such model, or it does not answer.
        IndexingError: The index, its pipeline, the model or the archive does not fit.
        ClusterSettingsError: The index is closed or blocked.
    """
    check_arguments(settings, encode, encoder, model_id, pipeline_batch_size, made_by)
    target = resolve(client, index, writing=True) or Target(index, index)
    if target.parts:
        check_usage(target, encode, recreate=recreate)
    elif target.is_alias and recreate:
        raise UsageError(
            f"{target} cannot be recreated: the alias would be left without it",
            hint=f"Name the index itself: {target.index}",
        )
    check_index_name(target.written)
    model = find_encoder_model(client, model_id) if model_id else None
    query_model = find_model(client, query_model_id) if query_model_id else None
    info = IndexInfo(
        name=target.index,
        kind=settings.kind,
        key=key_for(settings.kind, encoder.vocabulary.key_format if encoder is not None else key or "token"),
        embedding_field=settings.embedding_path,
        passage_field=settings.passage_field,
        nested=settings.nested,
        chunking=str(settings.chunking) if settings.chunking else None,
        encode=encode,
        encoder=identity(encode, encoder, model, query_model, made_by),
        prune=str(prune) if prune else None,
        text_fields=settings.text_fields,
        given=digest_of(settings),
    )
    existing, template = look(client, target.index), None
    if existing is not None and not recreate:
        there = {name.removeprefix("index."): value for name, value in existing.settings.items()}
    else:
        there = flat_settings(settings.settings)
        template = template_of(client, target.index)
        if template is not None:
            settings = under(settings, template)
            (notify or (lambda _: None))(str(template))
            there = {**template.settings, **there}
    if settings.analyzer is not None:
        is_there = existing is not None and not recreate
        check_analyzer(client, settings.analyzer, there, target.index if is_there else None)
    if existing is not None:
        loaded = as_loaded(client, target, existing, info, settings) if target.parts else existing
        _check_existing(loaded, info, settings, recreate=recreate)
    if encoder is not None and model is not None:
        check_are_one(client, model, encoder, queries=False, notify=notify)
    if encoder is not None and query_model is not None and encoder.architecture == "inference-free":
        query_model = serving(client, query_model, IndexingError)
        check_are_one(client, query_model, encoder, queries=True, notify=notify)
    if existing is not None and not recreate:
        check_stored(client, existing, info, encoder, model, notify)
        info = IndexInfo.from_meta(info.name, {**existing.info.to_meta(), **info.to_meta()})
    plan = LoadPlan(
        target,
        info,
        settings,
        model if encode == "cluster" else None,
        existing,
        None,
        recreate and existing is not None,
        pipeline_batch_size or PIPELINE_BATCH_SIZE,
        _pipeline_of_others(client, info, there, existing, notify),
        template,
    )
    if (existing is None or recreate) and plan.mapping.get("_source"):
        # A _reindex brings the marks of another index's documents, without what _source leaves out.
        plan = replace(plan, info=replace(info, generation=new_generation()))
    plan = replace(plan, pipeline=plan.pipeline_change(client))
    if existing is not None and plan.pipeline is not None and not plan.recreate:
        ours = [existing.info.encoder.model_id, info.encoder.model_id]
        if plan.pipeline.was_changed(ours):
            plan = replace(plan, info=replace(info, generation=new_generation()))
    return plan


def _pipeline_of_others(
    client: OpenSearch,
    info: IndexInfo,
    there: Mapping[str, Any],
    existing: ExistingIndex | None,
    notify: Notify,
) -> str | None:
    """The default pipeline that an index has or will have, and that is to run; None if there is none.

    Raises:
        IndexingError: It would have one that is not there, so that every other writer is refused, or the
            cluster refuses.
    """
    name, own = there.get("default_pipeline"), pipeline_name(info.name)
    was = existing.settings.get("index.default_pipeline") if existing is not None else None
    what = "The default pipeline"
    if name == own or (name is None and was == own and info.encode == "cluster"):  # which a new index keeps
        name, what = called_first(client, info.name), f"The pipeline that {own!r} calls,"
    if name in (None, "_none"):
        return None
    encodes, say = writes_vectors(client, name, info), notify or (lambda _: None)
    if encodes is None and existing is None:
        raise IndexingError(
            f"the index {info.name!r} would have the default pipeline {name!r}, which is not there",
            hint="Make that pipeline, or take the setting index.default_pipeline away",
        )
    why = {None: "is not there, so it is not run", True: "makes vectors itself, so it is not run"}
    say(f"{what} {name!r} of {info.name} {why.get(encodes, 'is run on the documents, too')}")
    return None if encodes is not False else str(name)


def new_generation() -> str:
    """One that no index has had."""
    return uuid.uuid4().hex[:8]


def check_arguments(
    settings: IndexSettings,
    encode: EncodeMode,
    encoder: TextEncoder | None,
    model_id: str | None,
    pipeline_batch_size: int | None,
    made_by: EncoderIdentity | None,
) -> None:
    """Refuse what does not fit together, whatever the cluster is.

    Raises:
        UsageError: It does not.
    """
    if encode == "client" and encoder is None:
        raise UsageError("encoding here needs an encoder", hint="Give --archive DIR, or --encode cluster")
    if encode == "cluster" and model_id is None:
        raise UsageError("encoding on the cluster needs a model", hint="Give --model NAME or its id")
    check_chunking(settings, encode, encoder)
    if settings.semantic and encode != "cluster":
        raise UsageError(
            "a semantic field is encoded by the cluster, whatever it is sent",
            hint="Give --model NAME, with --encode cluster or none of that option",
        )
    if pipeline_batch_size is not None and encode != "cluster":
        raise UsageError(
            "the pipeline's batch size has no effect where the cluster does not encode",
            hint="Leave it out: batches are made by their tokens.",
        )
    if settings.semantic and pipeline_batch_size is not None:
        raise UsageError("the pipeline's batch size has no effect on a semantic field, which has none")
    if encode == "none":
        check_made_by(made_by, encoder)
    if encoder is None:
        return
    check_vocabulary(settings.kind, encoder.vocabulary.size)
    ambiguous = encoder.vocabulary.key_format == "id"
    if encode == "cluster" and settings.kind == "rank_features" and ambiguous:
        raise UsageError(
            "several tokens of this encoder have the same text, and the cluster writes texts into "
            "rank_features, so weights would be lost",
            hint="Use --encode client, or --index-kind sparse_vector",
        )


def _check_existing(
    existing: ExistingIndex, info: IndexInfo, settings: IndexSettings, *, recreate: bool
) -> None:
    name = existing.name
    if recreate:
        if not existing.is_own:
            raise IndexingError(
                f"the index {name!r} was not made by oskit, so it is not deleted",
                hint="Delete it yourself, or choose another name",
            )
        existing.check_open("recreate", deletes=True)
        return
    existing.check_open("index documents into")
    if misfit := existing.misfit(info, settings):
        what, option = misfit
        start = f"{option}, choose" if option else "Choose"
        ways = f"{start} another name"
        may_go = existing.is_own and not name.startswith(".ds-")
        ways += ", or replace the index and its documents with --recreate" if may_go else ""
        raise IndexingError(f"the index {name!r} exists and {what}", hint=ways)
