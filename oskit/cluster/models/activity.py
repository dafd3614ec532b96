"""What models are doing right now, as the nodes' profile tells it.

``GET _plugins/_ml/profile`` lists the requests that run, and statistics of those that are done. Their count
stands still at 100 (``monitoring_request_count``), but their times change with every request.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from typing import Any

from opensearchpy import OpenSearch

from oskit.cluster.client.failures import cluster_errors
from oskit.cluster.models.registry import DEPLOYED_STATES, request
from oskit.errors import ModelError

LOOK_S = 5.0
"""How long a model is watched before it counts as idle."""

PAUSE_S = 0.25


class Watch:
    """Models under observation.

    Args:
        model_ids: Which models.

    Attributes:
        doing: What each model did since the look before, as in ``the model ...``; nothing if it is idle.
        in_memory: Those that a node has in memory, whatever their recorded state.
        seen: Those that the profile speaks of, which is empty for a user who may not see it.
        being_deployed: Those that a node is loading.

    Raises:
        ClusterAuthError: The user may not see profiles.
        ModelError: The cluster fails.
    """

    def __init__(self, client: OpenSearch, model_ids: Iterable[str]) -> None:
        self._client = client
        self._ids = tuple(model_ids)
        self._counted: dict[str, Any] = {}
        self._quiet_since: dict[str, float] = {}
        self._did: dict[str, str] = {}
        self.doing: dict[str, str] = {}
        self.in_memory: frozenset[str] = frozenset()
        self.being_deployed: frozenset[str] = frozenset()
        self.seen: frozenset[str] = frozenset()
        self.look()

    def keep(self, model_ids: Iterable[str]) -> None:
        """Go on watching only some of them."""
        self._ids = tuple(model_ids)

    def look(self) -> None:
        """Look once more."""
        with cluster_errors("see whether the model is encoding", ModelError):
            nodes = request(self._client, "GET", "/profile").get("nodes") or {}
        models = {node: found.get("models") or {} for node, found in nodes.items()}
        running = Counter(
            (task.get("model_id"), task.get("task_type"))
            for found in nodes.values()
            for task in (found.get("tasks") or {}).values()
            if task.get("state") in ("CREATED", "RUNNING")
        )
        now = time.monotonic()
        self.in_memory = frozenset(
            model_id
            for found in models.values()
            for model_id, of in found.items()
            if of.get("model_state") in DEPLOYED_STATES
        )
        self.seen = frozenset(model_id for found in models.values() for model_id in found)
        self.being_deployed = frozenset(str(model) for model, kind in running if kind == "DEPLOY_MODEL")
        for model_id in self._ids:
            counted = {
                node: found.get(model_id, {}).get("predict_request_stats") for node, found in models.items()
            }
            changed = counted != self._counted.get(model_id, counted)
            self._counted[model_id] = counted
            encoding = running[model_id, "PREDICTION"]
            doing = "has just answered requests" if changed else ""
            if encoding:
                doing = f"is encoding ({encoding} request{'s' * (encoding > 1)} right now)"
            self.doing[model_id] = doing
            if doing:
                self._did[model_id] = doing
                self._quiet_since.pop(model_id, None)
            else:
                self._quiet_since.setdefault(model_id, now)

    def until_quiet(self, *, quiet_s: float = LOOK_S, wait_s: float = 0.0) -> dict[str, str]:
        """Watch until every model did nothing for ``quiet_s`` seconds.

        Args:
            quiet_s: At zero one look is enough.
            wait_s: How long a model that is not idle may take to become so.

        Returns:
            What those did that cannot be quiet for that long in time; empty if all were.
        """
        end = time.monotonic() + max(wait_s, quiet_s)
        while True:
            now = time.monotonic()
            quiet_at = {i: self._quiet_since.get(i, now) + quiet_s for i in self._ids}
            late = {i: self._did[i] for i in self._ids if quiet_at[i] > end}
            if late or all(i in self._quiet_since and quiet_at[i] <= now for i in self._ids):
                return late
            time.sleep(PAUSE_S)
            self.look()
