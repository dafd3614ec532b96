"""Token weights from a deployed model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from opensearchpy import OpenSearch

from oskit.archive.text_encoder import KeyFormat, TokenWeights
from oskit.cluster.client.failures import cluster_errors, heard
from oskit.cluster.models.registry import ModelInfo, quoted, request, wait_until
from oskit.data.values import clean_text
from oskit.errors import ClusterError, ModelError

READY_WAIT_S = 120.0
"""After a restart the cluster took 20 to 60 seconds here to have its models in memory again."""


def predict(
    client: OpenSearch, model: ModelInfo, texts: Sequence[str], *, key: KeyFormat = "token"
) -> list[TokenWeights]:
    """Token weights of each text, heaviest first.

    Args:
        model: A deployed sparse model.
        texts: The texts, sent in one request; the model takes them one at a time.
        key: ``"token"`` for token texts, ``"id"`` for token ids (OpenSearch 3.2 and newer).

    Raises:
        ModelError: The model is not deployed, refuses, or answers in another form.
    """
    if not texts:
        return []
    body: dict[str, Any] = {"text_docs": [clean_text(text) for text in texts]}
    if key == "id":
        body["parameters"] = {"sparse_embedding_format": "TOKEN_ID"}
    # What runs elsewhere, as function REMOTE, is asked as an encoder too.
    function = model.function_name if model.function_name.startswith("SPARSE_") else "SPARSE_ENCODING"
    model_id = model.model_id
    with cluster_errors(f"get token weights from the model {model_id}", ModelError):
        answer = request(client, "POST", f"/_predict/{function.lower()}/{quoted(model_id)}", body)
    try:
        rows = [_weights(result) for result in answer["inference_results"]]
    except (KeyError, IndexError, TypeError, AttributeError):
        raise ModelError(
            f"The model {model_id} does not answer with token weights",
            hint="Is it a sparse encoder or tokenizer? See: oskit models",
        ) from None
    if len(rows) != len(texts):
        raise ModelError(f"The model {model_id} gave {len(rows)} answers for {len(texts)} texts")
    if key == "id" and any(not name.isdecimal() for row in rows for name in row):
        raise ModelError(
            f"The model {model_id} answers with token texts where ids are asked for",
            hint="Token ids need OpenSearch 3.2 or newer",
        )
    return rows


def is_ready(client: OpenSearch, model: ModelInfo) -> bool:
    """Whether the model really answers.

    After a node has restarted, a model is called DEPLOYED for some ten seconds without being in memory;
    then the cluster deploys it again by itself, if ``model_auto_redeploy.enable`` is on.

    Raises:
        ModelError: It fails for another reason.
    """
    try:
        predict(client, model, ["ready"])
    except ModelError as error:
        if means_not_ready(error):
            return False
        raise
    return True


def means_not_ready(error: ClusterError) -> bool:
    """Whether a request failed because a model is called DEPLOYED, but is not in memory (yet)."""
    known = heard(error.__cause__)
    return known is not None and known.passes == "model"


def await_ready(
    client: OpenSearch,
    model: ModelInfo,
    *,
    notify: Callable[[str], None] | None = None,
    wait_s: float = READY_WAIT_S,
) -> None:
    """Wait until a model that is called DEPLOYED answers.

    Args:
        notify: Told, in one line, when there is something to wait for.
        wait_s: How long, in seconds.

    Raises:
        ModelError: It does not answer in time, or fails for another reason.
    """
    if is_ready(client, model):
        return
    if notify is not None:
        notify(f"The model {model.name!r} is not in memory yet, as after a restart: waiting for it")
    if not wait_until(lambda: is_ready(client, model), wait_s=wait_s):
        raise ModelError(
            f"The model {model.name!r} ({model.model_id}) is called {model.state}, but does not answer",
            hint="Deploy its archive again with: oskit deploy ARCHIVE",
        )


def _weights(result: dict[str, Any]) -> TokenWeights:
    response = result["output"][0]["dataAsMap"]["response"][0]
    return dict(
        sorted(((str(name), float(weight)) for name, weight in response.items()), key=lambda item: -item[1])
    )
