"""Connectors of ML Commons to services that answer with an archive's weights.

What the bodies are made of, and why, is what OpenSearch 3.6.0 was seen to do: a format has a default, which
a search overrides; the number of texts of a call is bounded by the step size; only throttled calls are tried
again. Placeholders are replaced once more in what was put in their place, and so in texts that hold
``${parameters.…}``; a script writes their braces as JSON's ``\\u007b``, which only the service reads.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

from opensearchpy import OpenSearch
from opensearchpy.exceptions import ConflictError, ConnectionTimeout, NotFoundError, TransportError

from oskit.archive.archive import Archive
from oskit.cluster.client.failures import cluster_errors, heard
from oskit.cluster.client.retry import impatient
from oskit.cluster.models.registry import (
    ML,
    ModelInfo,
    content_note,
    find_model,
    list_models,
    quoted,
    request,
    search,
)
from oskit.errors import ClusterError, ModelError, UsageError

TEXTS_A_CALL = 32
CONNECTIONS = 30

CALLS_AT_ONCE = 10 * CONNECTIONS
"""A call waits ten seconds for a connection and then fails: as many find one where each takes a second."""

ANSWERS_WITHIN_S = 5.0
"""Or a service is called silent in a list."""

_NAME = "oskit "
_DESCRIPTION = re.compile(r"https?://\S+ (?:sha256:)?[0-9a-f]{64}")
"""By both a connector is known as one of ours."""

_INVOCATIONS = "/invocations"
"""The one path that SageMaker has."""

_SAGEMAKER = re.compile(r"runtime(?:-fips)?\.sagemaker(?:-fips)?\.([a-z0-9-]+)\.amazonaws\.com(?:\.cn)?")

_ESCAPING = r"""
StringBuilder all = new StringBuilder("[");
for (def text : params.text_docs) {
  if (all.length() > 1) { all.append(","); }
  all.append("\"").append(text.replace("${", "$\\u007b")).append("\"");
}
String texts = all.append("]").toString().replace("\\", "\\\\").replace("\"", "\\\"");
return "{\"parameters\":{\"texts\":\"" + texts + "\"}}";
"""
"""Painless; the texts come as the insides of JSON strings."""


@dataclass(frozen=True)
class Remote:
    """Where an archive is served.

    Attributes:
        url: Of the service; with several archives with ``/models/NAME``. Or an endpoint of SageMaker, whose
            path ends with ``/invocations``.
        token: Its bearer token; None where it asks for none.
        role_arn: The role that may invoke the endpoint, for SageMaker.
    """

    url: str
    token: str | None = None
    role_arn: str | None = None

    @property
    def region(self) -> str | None:
        """Of SageMaker; None for a service of one's own."""
        found = _SAGEMAKER.fullmatch(self._host() or "")
        return found[1] if found else None

    def _host(self) -> str | None:
        try:
            parts = urlsplit(self.url)
            usable = parts.scheme in ("http", "https") and not (parts.query or parts.fragment)
            usable = usable and parts.username is None and (parts.port is None or parts.port > 0)
        except ValueError:
            return None
        return parts.hostname if usable and "$" not in self.url and not re.search(r"\s", self.url) else None

    def endpoint(self, archive: Archive) -> str:
        """What the connector calls.

        Raises:
            UsageError: The URL is none.
        """
        if not self._host():
            raise UsageError(
                f"{self.url!r} is not the URL of a service",
                hint="Such as http://10.0.0.5:8080, as oskit serve says",
            )
        if urlsplit(self.url).path.endswith(_INVOCATIONS):
            return self.url
        path = "/v1/sparse/query" if archive.kind == "tokenizer" else "/v1/sparse"
        return f"{self.url.rstrip('/').removesuffix(path)}{path}"


def connector_body(archive: Archive, remote: Remote, name: str) -> dict[str, Any]:
    """Body of ``POST /_plugins/_ml/connectors/_create``.

    Raises:
        UsageError: The URL is none, or an endpoint of SageMaker comes without a role.
    """
    url = remote.endpoint(archive)
    headers = {"content-type": "application/json"}
    parameters = {
        "input_docs_processed_step_size": str(TEXTS_A_CALL),
        "skip_validating_missing_parameters": "true",
    }
    credential = {"key": remote.token or "none"}
    asked = (
        '"texts": ${parameters.texts}, "sparse_embedding_format": '
        '"${parameters.sparse_embedding_format:-WORD}"'
    )
    if url.endswith(_INVOCATIONS):
        asked += f', "prompt_name": "{"query" if archive.kind == "tokenizer" else "document"}"'
    if remote.region is not None:
        if remote.role_arn is None:
            raise UsageError(
                "An endpoint of SageMaker is invoked by a role", hint="Give its ARN with --role-arn"
            )
        parameters |= {"region": remote.region, "service_name": "sagemaker"}
        credential = {"roleArn": remote.role_arn}
    elif remote.token is not None:
        headers["authorization"] = "Bearer ${credential.key}"
    return {
        "name": f"{_NAME}{name}",
        "description": f"{url} {content_note(archive.sha256)}",
        "version": "1",
        "protocol": "http" if remote.region is None else "aws_sigv4",
        "parameters": parameters,
        "credential": credential,
        "actions": [
            {
                "action_type": "predict",
                "method": "POST",
                "url": url,
                "headers": headers,
                "pre_process_function": _ESCAPING,
                "request_body": f"{{{asked}}}",
            }
        ],
        "client_config": {
            "max_connection": CONNECTIONS,
            "connection_timeout": 10,
            "read_timeout": 60,
            "max_retry_times": 5,
            "retry_backoff_millis": 200,
            "retry_backoff_policy": "exponential_equal_jitter",
            "retry_timeout_seconds": 60,
        },
    }


@dataclass(frozen=True)
class Connector:
    """A connector as the cluster describes it.

    Attributes:
        connector_id: What models name.
        name: Ours is that of the model with a prefix.
        url: What it calls.
        is_ours: Whether oskit made it.
    """

    connector_id: str
    name: str
    url: str
    is_ours: bool

    @classmethod
    def of(cls, connector_id: str, source: dict[str, Any]) -> Connector:
        """From what the cluster holds of it."""
        name, description = str(source.get("name", "")), str(source.get("description", ""))
        actions = source.get("actions") or [{}]
        is_ours = name.startswith(_NAME) and _DESCRIPTION.fullmatch(description) is not None
        return cls(connector_id, name, str(actions[0].get("url", "")), is_ours)


def list_connectors(client: OpenSearch, model_name: str | None = None) -> dict[str, Connector]:
    """The connectors that we may see, by id.

    Args:
        model_name: Only those that were made for models of this name.

    Raises:
        ModelError: The cluster refuses.
    """
    query: dict[str, Any] = {"match_all": {}}
    if model_name is not None:
        query = {"term": {"name.keyword": f"{_NAME}{model_name}"}}
    hits = search(client, "connectors", query=query)
    return {hit["_id"]: Connector.of(hit["_id"], hit["_source"]) for hit in hits}


def unused_connectors(client: OpenSearch, model_name: str | None = None) -> list[Connector]:
    """Connectors of ours that no model calls, as a run leaves them that was killed.

    Args:
        model_name: Only those that were made for models of this name.
    """
    connectors = list_connectors(client, model_name)
    used = {model.connector_id for model in list_models(client)} if connectors else set()
    return [one for one in connectors.values() if one.is_ours and one.connector_id not in used]


def delete_connector(client: OpenSearch, connector_id: str) -> bool:
    """Delete a connector, if it is one of ours and no model uses it; whether it was deleted."""
    path = f"/connectors/{quoted(connector_id)}"
    with (
        cluster_errors(f"delete the connector {connector_id}", ModelError),
        contextlib.suppress(NotFoundError, ConflictError),
    ):
        if Connector.of(connector_id, request(client, "GET", path)).is_ours:
            request(client, "DELETE", path)
            return True
    return False


def with_services(client: OpenSearch, models: Sequence[ModelInfo]) -> list[ModelInfo]:
    """Models, remote ones with what their connectors call and whether that answers; and unused connectors.

    Where we may not see connectors, the models are as they were.
    """
    try:
        connectors = list_connectors(client)
    except ClusterError:
        return list(models)
    found = []
    for model in models:
        connector = connectors.get(model.connector_id or "")
        if connector is not None:
            ask = connector.is_ours and model.is_deployed
            problem = _why_no_answer(client, model) if ask else None
            model = replace(model, url=connector.url, problem=problem)
        found.append(model)
    return found + [_alone(one) for one in unused_connectors(client)]


def find_model_or_connector(client: OpenSearch, name_or_id: str) -> ModelInfo:
    """The one model of this id or name, or a connector of ours that no model uses, by its id.

    Raises:
        ModelError: As :func:`oskit.cluster.models.registry.find_model`.
    """
    try:
        return find_model(client, name_or_id)
    except ModelError:
        with contextlib.suppress(ClusterError):
            for connector in unused_connectors(client):
                if connector.connector_id == name_or_id:
                    return _alone(connector)
        raise


def _alone(connector: Connector) -> ModelInfo:
    """A connector without a model, in the place of one."""
    return ModelInfo(
        *(connector.connector_id, connector.name, "", "UNUSED", "CONNECTOR"),
        connector_id=connector.connector_id,
        url=connector.url,
    )


def _why_no_answer(client: OpenSearch, model: ModelInfo) -> str | None:
    body = {"text_docs": ["ready"]}
    path = f"{ML}/_predict/sparse_encoding/{quoted(model.model_id)}"
    try:
        with cluster_errors("ask", ModelError), impatient(client):
            client.transport.perform_request(
                "POST", path, body=body, params={"request_timeout": ANSWERS_WITHIN_S}
            )
    except ClusterError as error:
        if isinstance(error.__cause__, ConnectionTimeout):
            return f"no answer within {ANSWERS_WITHIN_S:g} s"
        return error.message.removeprefix("Cannot ask: ")
    return None


def name_service(client: OpenSearch, model: ModelInfo | None, error: ClusterError) -> None:
    """Have an error of a remote model say which service that is; what else failed is left as it is."""
    known = heard(error.__cause__)
    if model is None or model.connector_id is None or known is None or error.message.endswith("]"):
        return
    with contextlib.suppress(TransportError):
        source = request(client, "GET", f"/connectors/{quoted(model.connector_id)}")
        url = Connector.of(model.connector_id, source).url
        error.message = f"{error.message} [the model {model.name!r} ({model.model_id}) asks {url}]"
