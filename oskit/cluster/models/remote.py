"""Models that run elsewhere: an archive that ``oskit serve`` answers for, reached by a connector.

What the bodies are made of, and why, is what OpenSearch 3.6.0 was seen to do: the URL is written out, so that
texts which hold ``${parameters.endpoint}`` stay as they are; a format has a default, which a search
overrides; the number of texts of a call is bounded by the step size; only throttled calls are tried again.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from opensearchpy import OpenSearch

from oskit.archive.archive import Archive
from oskit.cluster.client.calls import settings_call
from oskit.cluster.client.failures import cluster_errors
from oskit.cluster.client.server_words import PREFIX
from oskit.cluster.models.deploy import DeployedModel
from oskit.cluster.models.prediction_parity import compare_predictions, expectation
from oskit.cluster.models.preflight import all_settings, in_force
from oskit.cluster.models.registry import (
    ModelInfo,
    delete_empty_group,
    existing_model,
    get_model,
    list_models,
    quoted,
    request,
    search,
    wait_until,
)
from oskit.cluster.models.retire import CONNECTOR
from oskit.errors import (
    ClusterError,
    ClusterSettingsError,
    ModelError,
    OskitError,
    PredictionMismatchError,
    UsageError,
)

TRUSTED = f"{PREFIX}trusted_connector_endpoints_regex"
PRIVATE = f"{PREFIX}connector.private_ip_enabled"

TEXTS_A_CALL = 32
CONNECTIONS = 30

Values = dict[str, Any]


@dataclass(frozen=True)
class Remote:
    """Where an archive is served.

    Attributes:
        url: Of the service; with several archives with ``/models/NAME``.
        token: Its bearer token; None where it asks for none.
    """

    url: str
    token: str | None = None

    def endpoint(self, archive: Archive) -> str:
        """What the connector calls.

        Raises:
            UsageError: The URL is none.
        """
        try:
            parts = urlsplit(self.url)
            usable = (
                parts.scheme in ("http", "https") and parts.hostname and not (parts.query or parts.fragment)
            )
            usable = usable and parts.username is None and (parts.port is None or parts.port > 0)
        except ValueError:
            usable = False
        if not usable or "$" in self.url or any(map(str.isspace, self.url)):
            raise UsageError(
                f"{self.url!r} is not the URL of a service",
                hint="Such as http://10.0.0.5:8080, as oskit serve says",
            )
        path = "/v1/sparse/query" if archive.kind == "tokenizer" else "/v1/sparse"
        return f"{self.url.rstrip('/').removesuffix(path)}{path}"


def connector_body(archive: Archive, remote: Remote, name: str) -> dict[str, Any]:
    """Body of ``POST /_plugins/_ml/connectors/_create``."""
    headers = {"content-type": "application/json"}
    if remote.token is not None:
        headers["authorization"] = "Bearer ${credential.key}"
    return {
        "name": f"{CONNECTOR}{name}",
        "description": f"{remote.endpoint(archive)} {archive.sha256}",
        "version": "1",
        "protocol": "http",
        "parameters": {
            "input_docs_processed_step_size": str(TEXTS_A_CALL),
            "skip_validating_missing_parameters": "true",
        },
        "credential": {"key": remote.token or "none"},
        "actions": [
            {
                "action_type": "predict",
                "method": "POST",
                "url": remote.endpoint(archive),
                "headers": headers,
                "pre_process_function": "connector.pre_process.cohere.embedding",
                "request_body": '{"texts": ${parameters.texts}, "sparse_embedding_format": '
                '"${parameters.sparse_embedding_format:-WORD}"}',
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


def deploy_remote(
    client: OpenSearch,
    archive: Archive,
    remote: Remote,
    *,
    name: str | None = None,
    configure_cluster: bool = False,
    wait_s: float = 60.0,
    notify: Callable[[str], object] = lambda _: None,
) -> DeployedModel:
    """Have the cluster ask a service for an archive's weights; what was deployed so before is used again.

    Args:
        archive: What the service answers for; its predictions are compared.
        remote: Where.
        name: Of the model; the archive's if None.
        configure_cluster: Whether to trust the address, and private ones, where the cluster does not yet.
        wait_s: Limit of the deployment.
        notify: Told what stays behind.

    Raises:
        UsageError: The URL is none.
        ClusterSettingsError: The cluster does not trust the address; the hint has the call that helps.
        PredictionMismatchError: The service computes something else than the archive.
        ModelError: Anything else; nothing stays behind then.
    """
    name = name or archive.name
    body = connector_body(archive, remote, name)
    expected = expectation(archive)
    if expected is None:
        raise ModelError(
            f"{archive.path} cannot run here and has no probes: nothing proves what {remote.url} is"
        )
    for model in _there(client, body):
        difference = compare_predictions(client, model, expected)
        return DeployedModel.of(model, archive, expected, difference=difference, reused=True)
    if named := list_models(client, {"term": {"name.keyword": name}}):
        raise ModelError(
            f"The cluster has a model named {name!r} already: {named[0].model_id} ({named[0].state})",
            hint="Give this one another name with --name, or delete that one with: oskit delete",
        )
    undo = _configure(client, body["actions"][0]["url"], configure_cluster)
    made: list[tuple[str, str]] = []
    try:
        with cluster_errors("create the connector", ModelError):
            made.append(("connectors", request(client, "POST", "/connectors/_create", body)["connector_id"]))
        registration = {
            "name": name,
            "description": archive.description,
            "function_name": "remote",
            "connector_id": made[-1][1],
            "model_config": {"model_type": "sparse_encoding"},
        }
        with cluster_errors("register the remote model", ModelError):
            made.append(
                ("models", request(client, "POST", "/models/_register?deploy=true", registration)["model_id"])
            )
        model = _deployed(client, made[-1][1], wait_s)
        difference = compare_predictions(client, model, expected)
    except BaseException as error:
        _take_back(client, made, undo, notify)
        if isinstance(error, PredictionMismatchError):
            error.hint = f"Does {remote.url} serve this archive? Its /info says which"
        elif isinstance(error, ClusterError):
            error.hint = error.hint or f"Is {remote.url} up, and can the cluster's nodes reach it?"
        raise
    return DeployedModel.of(model, archive, expected, difference=difference, reused=False)


def _there(client: OpenSearch, body: Mapping[str, Any]) -> list[ModelInfo]:
    """Models that answer already, behind a connector that is the same."""
    known = search(client, "connectors", query={"term": {"name.keyword": body["name"]}})
    ids = [hit["_id"] for hit in known if hit["_source"].get("description") == body["description"]]
    found = list_models(client, {"terms": {"connector_id.keyword": ids}}) if ids else []
    now = [get_model(client, model.model_id) for model in found]
    return [model for model in now if model is not None and model.is_deployed]


def _deployed(client: OpenSearch, model_id: str, wait_s: float) -> ModelInfo:
    """The model once it is deployed; a prediction before that would leave it as failed."""

    def look() -> ModelInfo | None:
        found = existing_model(client, model_id, during="deployment")
        return found if found.is_deployed or found.state == "DEPLOY_FAILED" else None

    found = wait_until(look, wait_s=wait_s)
    if found is None or not found.is_deployed:
        raise ModelError(f"The remote model {model_id} was not deployed within {wait_s:g} s")
    return found


def _configure(client: OpenSearch, url: str, allowed: bool) -> dict[str, Values] | None:
    """Have the cluster trust a URL; what puts the settings back as they were, if any was changed."""
    known = all_settings(client)
    now = in_force(known)
    wanted: Values = {}
    trusted = now.get(TRUSTED) or []
    trusted = [trusted] if isinstance(trusted, str) else list(trusted)
    if not any(_matches(pattern, url) for pattern in trusted):
        parts = urlsplit(url)
        wanted[TRUSTED] = [*trusted, f"^{re.escape(f'{parts.scheme}://{parts.netloc}/')}.*$"]
    if str(now.get(PRIVATE, "false")).lower() != "true" and _is_private(urlsplit(url).hostname or ""):
        wanted[PRIVATE] = True
    if not wanted:
        return None
    # The list replaces the one before it, wherever it was set; a transient one hides a persistent one.
    kinds = {name: "transient" if name in known["transient"] else "persistent" for name in wanted}
    body = {kind: {n: v for n, v in wanted.items() if kinds[n] == kind} for kind in set(kinds.values())}
    call = settings_call(body)
    if not allowed:
        raise ClusterSettingsError(
            f"The cluster does not let its connectors reach {url}",
            hint=f"Give --configure-cluster, or send: {call}",
        )
    with cluster_errors("let connectors reach the service", ClusterSettingsError):
        client.cluster.put_settings(body=body)
    return {kind: {name: known[kind].get(name) for name in values} for kind, values in body.items()}


def _matches(pattern: str, url: str) -> bool:
    try:
        return re.fullmatch(pattern, url) is not None
    except re.error:  # Java's
        return False


def _is_private(host: str) -> bool:
    """Whether a host is in a private network, as far as that is seen from here."""
    try:
        found = [place[0] for *_, place in socket.getaddrinfo(host, None)]
        return any(not ipaddress.ip_address(str(one).partition("%")[0]).is_global for one in found)
    except (OSError, UnicodeError, ValueError):
        return True


def _take_back(
    client: OpenSearch,
    made: list[tuple[str, str]],
    undo: dict[str, Values] | None,
    notify: Callable[[str], object],
) -> None:
    for kind, found in reversed(made):
        try:
            with cluster_errors(f"take back the {kind.removesuffix('s')} {found}", ModelError):
                group = None
                if kind == "models":
                    model = get_model(client, found)
                    group = model.group_id if model is not None else None
                    request(client, "POST", f"/models/{quoted(found)}/_undeploy")
                request(client, "DELETE", f"/{kind}/{quoted(found)}")
                if group is not None:
                    delete_empty_group(client, group)
        except OskitError as error:
            notify(f"{kind.removesuffix('s')} {found} stays behind: {error}")
    if undo is not None:
        try:
            with cluster_errors("put the settings back", ClusterSettingsError):
                client.cluster.put_settings(body=undo)
        except OskitError as error:
            names = ", ".join(name for values in undo.values() for name in values)
            notify(f"the settings {names} stay changed: {error}")
