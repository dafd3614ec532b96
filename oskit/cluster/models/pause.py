"""Local models switched off for a moment, because one that encodes cannot be taken out of memory.

``plugins.ml_commons.local_model.enabled`` stands for all models of the cluster: while it is false, each
answers 400 at once. There is no switch for a single one.

Every pause leaves a mark of its own beside the setting, in the same request
(``cluster.metadata.*`` is free for such notes). Of two that began at the same moment the one that ends last
puts the setting back, to what it was before both; one that comes later waits until it is back. A mark beside
a setting that is on is what a killed run left, which the next pause takes away.
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

from oskit.cluster.client.calls import Call, settings_call
from oskit.cluster.client.failures import cluster_errors
from oskit.cluster.models.preflight import LOCAL_MODELS as SETTING
from oskit.cluster.models.preflight import all_settings, in_force, is_true
from oskit.cluster.models.registry import wait_until
from oskit.errors import ClusterAuthError, ClusterSettingsError

__all__ = ["SETTING", "local_models_paused", "pause_calls", "transient_settings", "until_not_paused"]

MARK = "cluster.metadata.oskit.pause."
BETWEEN_S = 5.0
"""By then a pause whose mark is gone has put the setting back."""


def transient_call(values: dict[str, Any]) -> Call:
    """The request that sets transient settings; None takes one back."""
    return settings_call({"transient": values})


def pause_calls(client: OpenSearch) -> tuple[list[Call], list[Call]]:
    """What :func:`local_models_paused` sends before and after; nothing where they are off already."""
    now = all_settings(client)
    if not _is_on(now):
        return [], []
    value, left, mark = now["transient"].get(SETTING), dict.fromkeys(_marks(now["transient"])), f"{MARK}…"
    return (
        [transient_call({SETTING: False, **left, mark: "HOST PID"})],
        [transient_call({mark: None}), transient_call({SETTING: value})],
    )


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
    before = _settings_unless_off(client, wait_s, notify)
    if not _is_on(before):
        notify("Local models are switched off already, and not by another pause: they stay so")
        yield
        return
    value, left = before["transient"].get(SETTING), dict.fromkeys(_marks(before["transient"]))
    notify("Pausing all local models of the cluster: until they run again, each answers 400")
    try:
        _set(client, {SETTING: False, **left, mark: f"{socket.gethostname()} {os.getpid()}"})
        yield
    finally:
        try:
            _set(client, {mark: None})
            others = _marks(transient_settings(client))
            if not others:
                _set(client, {SETTING: value})
        except BaseException:
            back = transient_call({SETTING: value, mark: None})
            notify(f"Local models may still be switched off. To switch them on again: {back}")
            raise
        if others:
            notify(f"Local models stay paused, and are put back by: {_shown(others)}")
        else:
            notify(f"Local models run again after {time.monotonic() - since:.1f} s")


def until_not_paused(client: OpenSearch, *, wait_s: float, notify: Callable[[str], None]) -> None:
    """Wait while another run has paused all local models, or until ``wait_s`` seconds are over.

    What switches them off without a mark, and what we may not see, is not waited for.
    """
    told = False

    def ended() -> bool:
        nonlocal told
        try:
            settings = transient_settings(client)
        except ClusterAuthError:
            return True
        marks = _marks(settings)
        if not marks or not _is_off(settings):
            return True
        if not told:
            notify(f"Local models are paused ({_shown(marks)}): waiting up to {wait_s:g} s for their return")
        told = True
        return False

    wait_until(ended, wait_s=wait_s)


def _settings_unless_off(
    client: OpenSearch, wait_s: float, notify: Callable[[str], None]
) -> dict[str, dict[str, Any]]:
    """All settings, once none of the transient ones switches local models off.

    Raises:
        ClusterSettingsError: One does so, even after ``wait_s`` seconds.
    """
    until_not_paused(client, wait_s=wait_s, notify=notify)
    # Between the end of a pause and its setting's return there is no mark.
    before = wait_until(lambda: _unless_off(client), wait_s=min(wait_s, BETWEEN_S))
    if before is None:
        marks = _shown(_marks(transient_settings(client)))
        back = transient_call({SETTING: None, f"{MARK}*": None})
        raise ClusterSettingsError(
            f"Local models are switched off already (transient {SETTING}: false"
            f"{f'; {marks}' if marks else ''}), and were not back after {wait_s:g} s",
            hint=f"If nobody is pausing them any more: {back}",
        )
    return before


def _unless_off(client: OpenSearch) -> dict[str, dict[str, Any]] | None:
    settings = all_settings(client)
    return None if _is_off(settings["transient"]) else settings


def _is_on(settings: dict[str, dict[str, Any]]) -> bool:
    return is_true(in_force(settings).get(SETTING, True))


def _is_off(transient: dict[str, Any]) -> bool:
    return not is_true(transient.get(SETTING, True))


def _marks(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name.startswith(MARK)}


def _shown(marks: dict[str, Any]) -> str:
    return ", ".join(f"{name}: {by}" for name, by in marks.items())


def _set(client: OpenSearch, values: dict[str, Any]) -> None:
    with cluster_errors("switch local models off or on", ClusterSettingsError):
        client.cluster.put_settings(body=transient_call(values).body)
