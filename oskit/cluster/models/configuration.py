"""Settings that a deployment changes, and puts back if it fails."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from typing import Any

from opensearchpy import OpenSearch

from oskit.cluster.client.calls import settings_call
from oskit.cluster.client.failures import cluster_errors
from oskit.cluster.client.server_words import PREFIX
from oskit.cluster.models.preflight import (
    ELIGIBLE_ROLES,
    LOCAL_MODELS,
    ONLY_ML,
    SettingProblem,
    all_settings,
    changing_call,
    in_force,
)
from oskit.cluster.models.registry import IN_MEMORY_STATES, ModelInfo, get_model, list_models
from oskit.errors import ClusterSettingsError

TRUSTED = f"{PREFIX}trusted_connector_endpoints_regex"
"""A list for all: what one run adds is put in and taken out, and the rest stays."""

PRIVATE = f"{PREFIX}connector.private_ip_enabled"

_SERVING_NEEDS = frozenset({ONLY_ML, ELIGIBLE_ROLES, LOCAL_MODELS})
"""Put back, they would take models out of memory, which kills a node that encodes with one, or stop them."""

_LOOKS = 4
"""At a list that others may write too."""


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
        self._in_force: dict[str, Any] = {}
        self._remote: set[str] = set()

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
        for kind, values in changed.items():
            self._before.setdefault(kind, {}).update({name: known[kind].get(name) for name in values})
            self._changed.setdefault(kind, {}).update(values)  # also if the answer is lost
            self._in_force |= {name: in_force(known).get(name) for name in values}
        self._remote = {model.model_id for model in list_models(self._client) if model.is_remote}
        with cluster_errors("change the cluster's settings", ClusterSettingsError):
            self._client.cluster.put_settings(body=changed)
        for kind, values in changed.items():
            for name, value in values.items():
                told = f"to {value}" if name != TRUSTED else f"by adding {', '.join(self._added(value))}"
                self._notify(f"Changed the cluster's {kind} setting {name} {told}")

    def put_back(self) -> None:
        """Undo what this run changed, except what somebody else has changed since or what serves needs."""
        for _ in range(_LOOKS):
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
                    was = "unset" if value is None else "without what was added" if name == TRUSTED else value
                    self._notify(f"Put back the cluster's {kind} setting {name}: {was}, as before")
            # A list may have been written by another run at the same moment, which read it before.
            self._changed = {
                kind: {TRUSTED: values[TRUSTED]}
                for kind, values in self._changed.items()
                if TRUSTED in body.get(kind, {})
            }
            if self._changed:
                time.sleep(random.uniform(0.1, 0.5))  # noqa: S311 - not a secret

    def _what_may_go_back(self) -> dict[str, dict[str, Any]]:
        known = all_settings(self._client)
        models = [model for model in list_models(self._client) if self._is_in_memory(model)]
        serves = any(not model.is_remote for model in models)
        reaches = any(model.is_remote and model.model_id not in self._remote for model in models)
        body: dict[str, dict[str, Any]] = {}
        for kind, values in self._changed.items():
            for name, value in values.items():
                now, before = known[kind].get(name), self._before[kind][name]
                if name == TRUSTED and isinstance(now, list):
                    rest = [one for one in now if one not in self._added(value)]
                    if rest != now:
                        body.setdefault(kind, {})[name] = before if rest == self._in_force[name] else rest
                elif _written(now) != _written(value):
                    self._notify(f"The setting {name} stays: somebody else has changed it since")
                elif (serves and name in _SERVING_NEEDS) or (reaches and name == PRIVATE):
                    self._notify(f"The setting {name} stays: models in memory need it now")
                else:
                    body.setdefault(kind, {})[name] = before
        return body

    def _added(self, trusted: Sequence[str]) -> list[str]:
        return [one for one in trusted if one not in (self._in_force[TRUSTED] or ())]

    def _is_in_memory(self, model: ModelInfo) -> bool:
        if model.state not in IN_MEMORY_STATES or (model.is_remote and model.model_id in self._remote):
            return False
        now = get_model(self._client, model.model_id)  # a search sees an undeployment a second later
        return now is not None and now.state in IN_MEMORY_STATES


def _written(value: Any) -> Any:
    """As OpenSearch answers with it: lists stay lists, all else becomes a string."""
    if value is None or isinstance(value, list):
        return value
    return str(value).lower() if isinstance(value, bool) else str(value)
