"""Local models switched off for a moment, because one that encodes cannot be taken out of memory.

``plugins.ml_commons.local_model.enabled`` stands for all models of the cluster: while it is false, each
answers 400 at once. There is no switch for a single one.

Every pause leaves a mark of its own beside the setting, in the same request
(``cluster.metadata.*`` is free for such notes). Of two that began at the same moment the one that ends last
puts the setting back, to what it was before both; one that comes later waits until it is back.
"""

from __future__ import annotations

import os
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from opensearchpy import OpenSearch

from oskit.cluster.client.calls import Call
from oskit.cluster.client.failures import cluster_errors
from oskit.cluster.client.server_words import PREFIX
from oskit.cluster.models.registry import wait_until
from oskit.errors import ClusterSettingsError

SETTING = f"{PREFIX}local_model.enabled"
MARK = "cluster.metadata.oskit.pause."


def transient_call(values: dict[str, Any]) -> Call:
    """The request that sets transient settings; None takes one back."""
    return Call("PUT", "_cluster/settings", {"transient": values})


def transient_settings(client: OpenSearch) -> dict[str, Any]:
    """Those that are set, by their flat names."""
    with cluster_errors("read the cluster's settings", ClusterSettingsError):
        settings: dict[str, Any] = client.cluster.get_settings(params={"flat_settings": "true"})["transient"]
    return settings


@contextmanager
def local_models_paused(
    client: OpenSearch, *, wait_s: float, notify: Callable[[str], None]
) -> Iterator[None]:
    """Switch all local models off inside the block; however it is left, the setting is what it was before.

    Args:
        wait_s: How long another pause is waited for, in seconds.
        notify: Told when the models stop and when they run again.

    Raises:
        ClusterSettingsError: They are switched off already, or the cluster refuses.
    """
    mark, since = f"{MARK}{uuid.uuid4().hex[:12]}", time.monotonic()
    before = wait_until(lambda: _unless_off(client), wait_s=wait_s)
    if before is None:
        marks = ", ".join(f"{name}: {by}" for name, by in _marks(transient_settings(client)).items())
        back = transient_call({SETTING: None, f"{MARK}*": None})
        raise ClusterSettingsError(
            f"Local models are switched off already (transient {SETTING}: false"
            f"{f'; {marks}' if marks else ''}), and were not back after {wait_s:g} s",
            hint=f"If nobody is pausing them any more: {back}",
        )
    value = before.get(SETTING)
    notify("Pausing all local models of the cluster: until they run again, each answers 400")
    try:
        _set(client, {SETTING: False, mark: f"{socket.gethostname()} {os.getpid()}"})
        yield
    finally:
        try:
            _set(client, {mark: None})
            if not _marks(transient_settings(client)):
                _set(client, {SETTING: value})
        except BaseException:
            back = transient_call({SETTING: value, mark: None})
            notify(f"Local models may still be switched off. To switch them on again: {back}")
            raise
        notify(f"Local models run again after {time.monotonic() - since:.1f} s")


def _unless_off(client: OpenSearch) -> dict[str, Any] | None:
    """The transient settings, with something in them; None while one switches local models off."""
    settings = transient_settings(client)
    return None if str(settings.get(SETTING)).lower() == "false" else {"": "", **settings}


def _marks(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name.startswith(MARK)}


def _set(client: OpenSearch, values: dict[str, Any]) -> None:
    with cluster_errors("switch local models off or on", ClusterSettingsError):
        client.cluster.put_settings(body=transient_call(values).body)
