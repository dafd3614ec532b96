"""Which model encodes the queries for an index, and whether it is the encoder that somebody means."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from oskit.archive.agreement import agree, is_quantized, largest_difference
from oskit.cluster.models.predict import predict, with_model
from oskit.cluster.models.prediction_parity import TEXTS
from oskit.cluster.models.registry import (
    IN_MEMORY_STATES,
    ModelInfo,
    find_model,
    get_model,
    list_models,
    wait_until,
)
from oskit.errors import SearchError

if TYPE_CHECKING:
    from opensearchpy import OpenSearch

    from oskit.archive.text_encoder import TextEncoder
    from oskit.cluster.index.mapping import IndexInfo

REDEPLOYED_WAIT_S = 3.0
"""How long a model may be out of memory while it is deployed anew: ``oskit deploy --redeploy`` takes less."""

_TOKENIZER = "SPARSE_TOKENIZE"


def query_model(
    client: OpenSearch, info: IndexInfo, by: Literal["model", "tokenizer"], name_or_id: str | None
) -> ModelInfo:
    """The model that encodes queries: the one asked for, or the one that made the index.

    It may still be on its way into memory (:func:`oskit.cluster.models.predict.with_model` waits for it).

    Raises:
        SearchError: None is known or deployed, or it is not of the kind that was asked for.
        ModelError: There is none of this name or id.
    """
    model = find_model(client, name_or_id) if name_or_id else _recorded_model(client, info, by)
    if by == "tokenizer" and model.function_name != _TOKENIZER:
        raise SearchError(
            f"the model {model.name!r} is no tokenizer but {model.function_name}", hint="Use --by model"
        )
    if _answers(model):
        return model

    def again() -> ModelInfo | None:
        now = get_model(client, model.model_id)
        return now if now is not None and _answers(now) else None

    # What a search found may be a second old.
    if back := wait_until(again, wait_s=REDEPLOYED_WAIT_S if model.state == "UNDEPLOYED" else 0):
        return back
    what = "" if name_or_id else f", which encodes the queries for {info.name!r},"
    raise SearchError(
        f"the model {model.name!r} ({model.model_id}){what} is not deployed: {model.state}",
        hint=f"Deploy its archive with: oskit deploy ARCHIVE (or POST _plugins/_ml/models/{model.model_id}"
        "/_deploy), or search with --archive DIR",
    )


def _answers(model: ModelInfo) -> bool:
    """Whether it encodes, or will in a moment; a remote one is deployed by the first question."""
    return model.state in IN_MEMORY_STATES or model.is_deployed or model.is_remote


def _recorded_model(client: OpenSearch, info: IndexInfo, by: str) -> ModelInfo:
    """The model with the id, or else with the content, that stands in the index; one that answers, if any.

    Raises:
        SearchError: None is recorded, or it is gone.
    """
    encoder = info.encoder
    wants_tokenizer = by == "tokenizer" or encoder.architecture == "inference-free" or encoder.query_model_id
    model_id = encoder.query_model_id if wants_tokenizer else encoder.model_id
    sha256 = encoder.query_sha256 if wants_tokenizer else encoder.sha256
    give = "Give one with --model (oskit models lists them), or search with --archive DIR"
    if not model_id and not sha256:
        raise SearchError(f"which model encodes the queries for {info.name!r} is not recorded", hint=give)
    models = list_models(client)
    found = [model for model in models if model.model_id == model_id]
    found += [model for model in models if sha256 and model.sha256 == sha256]
    if found:
        return next((model for model in found if _answers(model)), found[0])
    what = "tokenizer" if wants_tokenizer else "encoder"
    name = f" {encoder.name!r}" if encoder.name else ""
    if model_id:
        raise SearchError(
            f"the model {model_id}, which encodes the queries for {info.name!r} ({what}{name}), was deleted",
            hint=f"Deploy its archive again with: oskit deploy ARCHIVE. {give}",
        )
    raise SearchError(
        f"the {what}{name} that {info.name!r} was made with (sha256 {str(sha256)[:12]}…) is not deployed",
        hint=f"Deploy its archive with: oskit deploy ARCHIVE. {give}",
    )


def check_same_encoder(
    client: OpenSearch,
    model: ModelInfo,
    encoder: TextEncoder,
    *,
    queries: bool = False,
    notify: Callable[[str], object] | None = None,
) -> None:
    """Refuse a model that is not the encoder at hand: by its content, or else by what it predicts.

    Two formats of one encoder have other contents, and predict the same.

    Args:
        queries: Compare with the queries' side of the encoder in any case; else with that of the model's
            kind.
        notify: Told, in one line, that the model is being waited for.

    Raises:
        SearchError: It is another.
    """
    queries = queries or model.function_name == _TOKENIZER
    archive = getattr(encoder, "archive", None)
    side = archive
    if queries and encoder.architecture == "inference-free":
        side = getattr(encoder, "query", None)
    if model.sha256 and model.sha256 == getattr(side, "sha256", None) and not model.is_remote:
        return
    key = encoder.vocabulary.key_format
    texts = TEXTS[:3]
    weights = (encoder.query_weights if queries else encoder.document_weights)(list(texts), key=key)
    answers = with_model(client, model, lambda: predict(client, model, texts, key=key), notify=notify)
    manifest = getattr(side, "manifest", None)
    pruned, quantized = getattr(manifest, "prune", None) is not None, is_quantized(manifest)
    for text, wanted, given in zip(texts, weights, answers, strict=True):
        if not agree(wanted, given, quantized=quantized, pruned=pruned):
            token, _ = largest_difference(wanted, given, pruned=pruned)
            raise SearchError(
                f"the model {model.name!r} ({model.model_id}) is another encoder than "
                f"{getattr(archive, 'path', 'the one given')}: for {text!r} the token {token!r} weighs "
                f"{given.get(token, 0.0):.4f} there and {wanted.get(token, 0.0):.4f} here",
                hint="Name the model and the archive of one encoder",
            )
