"""Which encoder makes the vectors of an index: looked up, recorded, and compared with what is there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from oskit.archive.agreement import TOLERANCE, is_quantized, largest_difference
from oskit.archive.siblings import archive_sha256
from oskit.archive.token_weights import Prune, prune
from oskit.cluster.client.failures import cluster_errors
from oskit.cluster.index.mapping import EncodeMode, EncoderIdentity, IndexInfo
from oskit.cluster.index.passages import passage_of, texts_of
from oskit.cluster.index.sparse_fields import value_at, vectors_of
from oskit.cluster.models.predict import await_ready, predict
from oskit.cluster.models.prediction_parity import TEXTS, Expectation, compare_predictions
from oskit.cluster.models.registry import ModelInfo, find_model, serving
from oskit.errors import IndexingError, PredictionMismatchError, UsageError

if TYPE_CHECKING:
    from opensearchpy import OpenSearch

    from oskit.archive.text_encoder import TextEncoder, TokenWeights
    from oskit.cluster.index.existing import ExistingIndex

Notify = Callable[[str], object] | None

_SAMPLE = 5
"""Documents of an index whose vectors are compared where nobody knows which encoder made them."""


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
    if model.function_name != "SPARSE_ENCODING" and not model.is_remote:
        raise IndexingError(
            f"the model {model.name!r} is {model.function_name or 'of no known kind'}, not a sparse encoder",
            hint="Give one of the kind SPARSE_ENCODING with --model; oskit models lists them",
        )
    return serving(client, model, IndexingError)


def check_made_by(made_by: EncoderIdentity | None, encoder: TextEncoder | None) -> None:
    """Refuse vectors that say that another encoder made them."""
    now = archive_sha256(encoder)
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


def check_are_one(
    client: OpenSearch, model: ModelInfo, encoder: TextEncoder, *, queries: bool, notify: Notify
) -> None:
    """Refuse a model and an archive that are not the same encoder; two formats of one are."""
    archive = getattr(encoder, "query" if queries else "archive", None)
    if archive is not None and archive.sha256 == model.sha256 and not model.is_remote:
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


def check_stored(
    client: OpenSearch,
    existing: ExistingIndex,
    info: IndexInfo,
    encoder: TextEncoder | None,
    model: ModelInfo | None,
    notify: Notify,
) -> None:
    """Refuse another encoder where no content tells: a few documents of the index must have its vectors."""
    served = model is not None and model.is_remote  # whose content is what the service said once
    if existing.info.encoder.sha256 and info.encoder.sha256 and not served:
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
