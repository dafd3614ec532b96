"""Settings that a deployment changes, and puts back if it fails."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from opensearchpy import OpenSearch

from oskit.cluster.client.calls import settings_call
from oskit.cluster.client.failures import cluster_errors
from oskit.cluster.models.preflight import (
    ELIGIBLE_ROLES,
    LOCAL_MODELS,
    ONLY_ML,
    SettingProblem,
    all_settings,
    changing_call,
)
from oskit.cluster.models.registry import IN_MEMORY_STATES, ModelInfo, get_model, list_models
from oskit.errors import ClusterSettingsError

_SERVING_NEEDS = frozenset({ONLY_ML, ELIGIBLE_ROLES, LOCAL_MODELS})
"""Put back, they would take models out of memory, which kills a node that encodes with one, or stop them."""


class Configuration:
    """What one run changes of a cluster's settings, and how they were before.

    Args:
        client: The cluster.
        notify: Told of every change, one line each.
    """

    def __init__(self, client: OpenSearch, notify: Callable[[str], None]) -> None:
        self._client = client
        self._notify = notify
        self._before: dict[str, dict[str, Any]] = {}
        self._changed: dict[str, dict[str, Any]] = {}

    def change(self, problems: Sequence[SettingProblem]) -> None:
        """Give the settings that stand in the way the values that help, each where it is set.

        Raises:
            ClusterAuthError: The user may not change settings.
            ClusterSettingsError: The cluster refuses a value.
        """
        changed: dict[str, dict[str, Any]] = changing_call(problems).body
        if not changed:
            return
        known = all_settings(self._client)
        self._before = {
            kind: {name: known[kind].get(name) for name in values} for kind, values in changed.items()
        }
        self._changed = changed  # also if the answer is lost
        with cluster_errors("change the cluster's settings", ClusterSettingsError):
            self._client.cluster.put_settings(body=changed)
        for kind, values in changed.items():
            for name, value in values.items():
                self._notify(f"Changed the cluster's {kind} setting {name} to {value}")

    def put_back(self) -> None:
        """Undo what this run changed, except what somebody else has changed since or what serves needs."""
        if not self._changed:
            return
        try:
            body = self._what_may_go_back()
            if body:
                self._client.cluster.put_settings(body=body)
        except Exception:  # whatever it is, the failure before it is the one to tell
            self._notify(f"The settings could not be put back; send: {settings_call(self._before)}")
            return
        for kind, values in body.items():
            for name, value in values.items():
                was = "unset, as before" if value is None else f"{value}, as before"
                self._notify(f"Put back the cluster's {kind} setting {name}: {was}")
        self._changed = {}

    def _what_may_go_back(self) -> dict[str, dict[str, Any]]:
        known = all_settings(self._client)
        serves = any(self._is_in_memory(model) for model in list_models(self._client))
        body: dict[str, dict[str, Any]] = {}
        for kind, values in self._changed.items():
            for name, value in values.items():
                if _written(known[kind].get(name)) != _written(value):
                    self._notify(f"The setting {name} stays: somebody else has changed it since")
                elif serves and name in _SERVING_NEEDS:
                    self._notify(f"The setting {name} stays: models in memory need it now")
                else:
                    body.setdefault(kind, {})[name] = self._before[kind][name]
        return body

    def _is_in_memory(self, model: ModelInfo) -> bool:
        if model.state not in IN_MEMORY_STATES or model.function_name == "REMOTE":
            return False
        now = get_model(self._client, model.model_id)  # a search sees an undeployment a second later
        return now is not None and now.state in IN_MEMORY_STATES


def _written(value: Any) -> Any:
    """As OpenSearch answers with it: lists stay lists, all else becomes a string."""
    if value is None or isinstance(value, list):
        return value
    return str(value).lower() if isinstance(value, bool) else str(value)
