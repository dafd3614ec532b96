"""What a load will do to the cluster: models and index are looked at, and what does not fit is refused.

Nothing is changed here, so a refusal leaves everything as it was; and a dry run tells the calls.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from oskit.archive.token_weights import Prune, prune
from oskit.cluster.client.calls import Call
from oskit.cluster.client.failures import cluster_errors
from oskit.cluster.index.existing import ExistingIndex, look
from oskit.cluster.index.given import check_analyzer, digest_of, flat_settings
from oskit.cluster.index.mapping import (
    MARK_BODY,
    EncodeMode,
    EncoderIdentity,
    IndexInfo,
    IndexSettings,
    check_vocabulary,
    key_for,
)
from oskit.cluster.index.meta import changed_meta
from oskit.cluster.index.names import Target, check_index_name, resolve
from oskit.cluster.index.passages import passage_of, texts_of
from oskit.cluster.index.pipeline import (
    PipelineChange,
    encoding_pipeline,
    no_pipeline,
    pipeline_name,
    writes_vectors,
)
from oskit.cluster.index.recreate import Trial, calls_of_new
from oskit.cluster.index.sparse_fields import definition_of, value_at, vectors_of
from oskit.cluster.index.templates import template_of, under
from oskit.cluster.ingest.cutting import check_chunking
from oskit.cluster.ingest.known import ASKED_AT_ONCE, Known, recipe_of
from oskit.cluster.ingest.missing import Missing, Sweeper
from oskit.cluster.models.predict import await_ready, predict
from oskit.cluster.models.prediction_parity import (
    TEXTS,
    TOLERANCE,
    Expectation,
    compare_predictions,
    is_quantized,
    largest_difference,
)
from oskit.cluster.models.registry import ModelInfo, find_model, serving
from oskit.data.documents import MARK_FIELD
from oskit.errors import IndexingError, PredictionMismatchError, UsageError

if TYPE_CHECKING:
    from opensearchpy import OpenSearch

    from oskit.archive.text_encoder import KeyFormat, TextEncoder, TokenWeights
    from oskit.data.duplicates import SeenTexts

Notify = Callable[[str], object] | None

PIPELINE_BATCH_SIZE = 32
"""Documents that an ingest pipeline hands to the model together, where nobody says."""

_SAMPLE = 5
"""Documents of an index whose vectors are compared where nobody knows which encoder made them."""


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
        before = self.existing.info.to_meta() if self.existing else {}
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
            calls.append(Call("POST", f"{name}/_bulk?pipeline={self.runs}", note=told))
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
    _check_usage(settings, encode, encoder, model_id)
    if pipeline_batch_size is not None and encode != "cluster":
        raise UsageError(
            "the pipeline's batch size has no effect where the cluster does not encode",
            hint="Leave it out: batches are made by their tokens.",
        )
    if encode == "none":
        _check_made_by(made_by, encoder)
    if settings.semantic and pipeline_batch_size is not None:
        raise UsageError("the pipeline's batch size has no effect on a semantic field, which has none")
    target = resolve(client, index, writing=True) or Target(index, index)
    if target.is_alias and recreate:
        raise UsageError(
            f"{target} cannot be recreated: the alias would be left without it",
            hint=f"Name the index itself: {target.index}",
        )
    check_index_name(target.index)
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
    existing = look(client, target.index)
    if existing is not None and not recreate:
        there = {name.removeprefix("index."): value for name, value in existing.settings.items()}
    else:
        there = flat_settings(settings.settings)
        if (template := template_of(client, target.index)) is not None:
            settings = under(settings, template)
            (notify or (lambda _: None))(str(template))
            there = {**template.settings, **there}
    if settings.analyzer is not None:
        is_there = existing is not None and not recreate
        check_analyzer(client, settings.analyzer, there, target.index if is_there else None)
    if existing is not None:
        _check_existing(existing, info, settings, recreate=recreate)
    if encoder is not None and model is not None:
        check_are_one(client, model, encoder, queries=False, notify=notify)
    if encoder is not None and query_model is not None and encoder.architecture == "inference-free":
        query_model = serving(client, query_model, IndexingError)
        check_are_one(client, query_model, encoder, queries=True, notify=notify)
    if existing is not None and not recreate:
        _check_stored(client, existing, info, encoder, model, notify)
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
    )
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
    name = there.get("default_pipeline")
    if name in (None, "_none", pipeline_name(info.name)):
        return None
    encodes, say = writes_vectors(client, name, info.embedding_field), notify or (lambda _: None)
    if encodes is None and existing is None:
        raise IndexingError(
            f"the index {info.name!r} would have the default pipeline {name!r}, which is not there",
            hint="Make that pipeline, or take the setting index.default_pipeline away",
        )
    why = {None: "is not there, so it is not run", True: "makes vectors itself, so it is not run"}
    say(f"The default pipeline {name!r} of {info.name} {why.get(encodes, 'is run on the documents, too')}")
    return None if encodes is not False else str(name)


def new_generation() -> str:
    """One that no index has had."""
    return uuid.uuid4().hex[:8]


def find_encoder_model(client: OpenSearch, name_or_id: str) -> ModelInfo:
    """The model that shall encode documents.

    Raises:
        ModelError: There is none of this name or id.
        IndexingError: It is not deployed, or does not encode documents.
    """
    model = find_model(client, name_or_id)
    if model.function_name == "SPARSE_TOKENIZE":
        raise IndexingError(
            f"the model {model.name!r} is a tokenizer, which encodes queries and not documents",
            hint="Give the encoder's model with --model, and this one with --query-model",
        )
    if model.function_name not in ("SPARSE_ENCODING", "REMOTE"):
        raise IndexingError(
            f"the model {model.name!r} is {model.function_name or 'of no known kind'}, not a sparse encoder",
            hint="Give one of the kind SPARSE_ENCODING with --model; oskit models lists them",
        )
    return serving(client, model, IndexingError)


def _check_usage(
    settings: IndexSettings, encode: EncodeMode, encoder: TextEncoder | None, model_id: str | None
) -> None:
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


def _check_made_by(made_by: EncoderIdentity | None, encoder: TextEncoder | None) -> None:
    """Refuse vectors that say that another encoder made them."""
    now = getattr(getattr(encoder, "archive", None), "sha256", None)
    if made_by is not None and made_by.sha256 and now and made_by.sha256 != now:
        raise UsageError(
            f"the vectors were made by another encoder, {made_by.name or 'unnamed'} ({made_by.sha256[:12]}), "
            f"than --archive ({now[:12]})",
            hint="Give the archive that made them, or none",
        )


def identity(
    encode: EncodeMode,
    encoder: TextEncoder | None,
    model: ModelInfo | None,
    query_model: ModelInfo | None,
    made_by: EncoderIdentity | None,
) -> EncoderIdentity:
    """Which encoder makes the vectors of an index, as it is recorded."""
    archive = getattr(encoder, "archive", None)  # a torch encoder has none
    query = getattr(encoder, "query", None)
    source = model if encode == "cluster" else archive
    if encode == "none" and archive is None:
        source = made_by or model
    return EncoderIdentity(
        sha256=getattr(source, "sha256", None),
        name=getattr(source, "name", None),
        architecture=encoder.architecture if encoder is not None else getattr(source, "architecture", None),
        model_id=model.model_id if model else None,
        query_sha256=query_model.sha256
        if query_model
        else getattr(query, "sha256", None) or getattr(source, "query_sha256", None),
        query_model_id=query_model.model_id if query_model else None,
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
        ways += ", or replace the index and its documents with --recreate" if existing.is_own else ""
        raise IndexingError(f"the index {name!r} exists and {what}", hint=ways)


def check_are_one(
    client: OpenSearch, model: ModelInfo, encoder: TextEncoder, *, queries: bool, notify: Notify
) -> None:
    """Refuse a model and an archive that are not the same encoder; two formats of one are."""
    archive = getattr(encoder, "query" if queries else "archive", None)
    if archive is not None and archive.sha256 == model.sha256:
        return
    manifest = getattr(archive, "manifest", None)
    quantized, pruned = is_quantized(manifest), getattr(manifest, "prune", None) is not None
    key = encoder.vocabulary.key_format
    weights = encoder.query_weights(TEXTS, key=key) if queries else encoder.document_weights(TEXTS, key=key)
    await_ready(client, model, notify=notify)
    try:
        compare_predictions(client, model, Expectation(TEXTS, tuple(weights), key, quantized, pruned, False))
    except PredictionMismatchError as error:
        options = ("--query-model", "--query-archive") if queries else ("--model", "--archive")
        raise IndexingError(
            f"{' and '.join(options)} are not the same encoder. {error.message}",
            hint=f"Give the archive of the model {model.name!r}, or leave one of the two out",
        ) from error


def _check_stored(
    client: OpenSearch,
    existing: ExistingIndex,
    info: IndexInfo,
    encoder: TextEncoder | None,
    model: ModelInfo | None,
    notify: Notify,
) -> None:
    """Refuse another encoder where no content tells: a few documents of the index must have its vectors."""
    if existing.info.encoder.sha256 and info.encoder.sha256:
        return
    if encoder is None and model is None:
        return  # nobody can tell

    def weights_of(passages: Sequence[str]) -> Sequence[TokenWeights]:
        if model is not None and (info.encode == "cluster" or encoder is None):
            await_ready(client, model, notify=notify)
            return predict(client, model, passages, key=info.key)
        assert encoder is not None
        return encoder.document_weights(passages, key=info.key)

    check_vectors(client, replace(existing.info, prune=info.prune), weights_of)


def check_vectors(
    client: OpenSearch, info: IndexInfo, weights_of: Callable[[Sequence[str]], Sequence[TokenWeights]]
) -> int:
    """Refuse an encoder that gives other vectors than a few documents of an index have.

    Args:
        info: The index, and which weights it keeps.
        weights_of: Encodes passages.

    Returns:
        How many documents were compared.

    Raises:
        IndexingError: None of them has its vector, or the cluster refuses.
    """
    title, texts = texts_of(info)
    names = [name for name in (title, *texts, info.passage_field, info.embedding_field) if name]
    names += [f"{info.nested}.text"] if info.nested else []
    body = {"size": _SAMPLE, "_source": names}
    with cluster_errors(f"read the index {info.name!r}", IndexingError):
        answer = client.search(index=info.name, body=body, params={"search_pipeline": "_none"})
    stored = []
    for hit in answer["hits"]["hits"]:
        source = hit.get("_source") or {}
        if info.nested:  # of a document the first chunk
            first = (value_at(source, info.nested) or [{}])[0]
            if first.get("text") and (vectors := vectors_of(first, info.embedding_name)):
                stored.append((str(first["text"]), vectors[0]))
            continue
        values = [value_at(source, name) for name in (title, *texts) if name]
        passage = value_at(source, passage_of(info)) or " ".join(str(value) for value in values if value)
        if vectors := vectors_of(source, info.embedding_field):
            stored.append((str(passage), vectors[0]))
    if not stored:
        return 0
    weights = weights_of([passage for passage, _ in stored])
    if info.prune:
        weights = [prune(each, Prune.parse(info.prune)) for each in weights]
    pairs = zip(weights, (vector for _, vector in stored), strict=True)
    if min(largest_difference(now, then, pruned=bool(info.prune))[1] for now, then in pairs) > TOLERANCE:
        raise IndexingError(
            f"the index {info.name!r} exists and its documents' vectors are not what this encoder gives",
            hint="Give the encoder that made it, choose another name, or replace the index with --recreate",
        )
    return len(stored)
