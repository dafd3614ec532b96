"""Token weights from a deployed model."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from opensearchpy import OpenSearch

from oskit.archive.text_encoder import KeyFormat, TokenWeights
from oskit.cluster.client.failures import cluster_errors, heard
from oskit.cluster.client.retry import policy_of
from oskit.cluster.models.connectors import name_service
from oskit.cluster.models.registry import ModelInfo, quoted, request, wait_until
from oskit.data.values import clean_text
from oskit.errors import ClusterError, ModelError

Result = TypeVar("Result")

_AGAIN_S = 0.2
"""Between two attempts, where a model answers a probe but not what is asked: one node of several lacks it."""


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
    try:
        with cluster_errors(f"get token weights from the model {model_id}", ModelError):
            answer = request(client, "POST", f"/_predict/{function.lower()}/{quoted(model_id)}", body)
    except ClusterError as error:
        name_service(client, model, error)
        raise
    try:
        # A local model has a result for each text, a remote one for each call of its service.
        rows = [row for result in answer["inference_results"] for row in _weights(result)]
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
        ClusterError: It fails for another reason.
    """
    return _why_not_ready(client, model) is None


def _why_not_ready(client: OpenSearch, model: ModelInfo) -> ClusterError | None:
    try:
        predict(client, model, ["ready"])
    except ClusterError as error:
        if means_not_ready(error):
            return error
        raise
    return None


def means_not_ready(error: ClusterError) -> bool:
    """Whether a request failed because a model is not in memory (yet), or local models are paused."""
    known = heard(error.__cause__)
    return known is not None and known.passes == "model"


def await_ready(
    client: OpenSearch,
    model: ModelInfo,
    *,
    notify: Callable[[str], object] | None = None,
    wait_s: float | None = None,
) -> None:
    """Wait until a model answers that is not in memory yet, is being deployed anew, or is paused.

    Args:
        notify: Told, in one line, when there is something to wait for.
        wait_s: How long, in seconds; as long as the client tries any request again (``--retry-for``) if None.

    Raises:
        ModelError: It does not answer in time.
        ClusterError: It fails for another reason, such as that it was deleted.
    """
    why = _why_not_ready(client, model)
    if why is None:
        return
    wait_s = policy_of(client).retry_for_s if wait_s is None else wait_s
    if notify is not None and wait_s > 0:
        known = heard(why.__cause__)
        notify(f"The model {model.name!r} does not answer ({known and known.means}): waiting for it")

    def answers() -> bool:
        nonlocal why
        why = _why_not_ready(client, model)
        return why is None

    if not wait_until(answers, wait_s=wait_s) and why is not None:
        raise ModelError(
            f"The model {model.name!r} ({model.model_id}) did not answer for {wait_s:g} s: {why.message}",
            hint=why.hint,
        ) from why.__cause__


def with_model(
    client: OpenSearch,
    model: ModelInfo | None,
    ask: Callable[[], Result],
    *,
    notify: Callable[[str], object] | None = None,
) -> Result:
    """What ``ask`` returns, once the model that it needs is there.

    A node may restart, and a model be deployed anew or paused, at any moment; so every question may be one
    that has to wait, as long in all as the client tries any request again.

    Args:
        model: What encodes; None if nothing on the cluster does.
        ask: Safe to call again; raises a :class:`ClusterError` of the model.
        notify: Told, in one line, when there is something to wait for.

    Raises:
        ClusterError: What ``ask`` raises for another reason.
        ModelError: The model does not answer in time.
    """
    end: float | None = None
    while True:
        try:
            return ask()
        except ClusterError as error:
            if model is None or not means_not_ready(error):
                name_service(client, model, error)
                raise
            now = time.monotonic()
            if end is None:
                end = now + policy_of(client).retry_for_s
            elif now >= end:
                raise
            await_ready(client, model, notify=notify, wait_s=end - now)
            notify = None
            time.sleep(_AGAIN_S)


def _weights(result: dict[str, Any]) -> list[TokenWeights]:
    return [
        dict(sorted(((str(name), float(weight)) for name, weight in row.items()), key=lambda item: -item[1]))
        for row in result["output"][0]["dataAsMap"]["response"]
    ]
