"""Switch an index's refresh off during a large load, and on again whatever happens."""

from __future__ import annotations

from typing import TYPE_CHECKING

from oskit.cluster.client.failures import cluster_errors
from oskit.cluster.index.meta import change_own_meta, read_own_meta
from oskit.errors import IndexingError

if TYPE_CHECKING:
    from opensearchpy import OpenSearch

_LEFT_BEHIND = "refresh_interval_before"
_DEFAULT = "default"


class RefreshPause:
    """Pauses the periodic refresh of one index.

    The interval from before stands in the mapping's ``_meta.oskit`` meanwhile, so that a load that was
    killed is noticed by the next one, which then restores it.
    """

    def __init__(self, client: OpenSearch, index: str) -> None:
        self._client = client
        self._index = index
        with cluster_errors(f"read the index {index!r}", IndexingError):
            self._paused = _LEFT_BEHIND in read_own_meta(client, index)

    def pause(self) -> None:
        """Switch refreshing off; does nothing the second time.

        Raises:
            IndexingError: The cluster refuses.
        """
        if self._paused:
            return
        with cluster_errors(f"pause the refresh of {self._index!r}", IndexingError):
            answer = self._client.indices.get_settings(index=self._index)
            settings = next(iter(answer.values()))["settings"]["index"]
            before = settings.get("refresh_interval", _DEFAULT)
            change_own_meta(self._client, self._index, {_LEFT_BEHIND: before})
            self._paused = True
            self._set_interval("-1")

    def finish(self) -> None:
        """Restore what was before and refresh once, so that everything indexed is found.

        Raises:
            IndexingError: The cluster refuses, or is gone.
        """
        with cluster_errors(f"refresh the index {self._index!r}", IndexingError):
            if self._paused:
                before = read_own_meta(self._client, self._index).get(_LEFT_BEHIND, _DEFAULT)
                self._set_interval(None if before == _DEFAULT else before)
                change_own_meta(self._client, self._index, {_LEFT_BEHIND: None})
                self._paused = False
            self._client.indices.refresh(index=self._index)

    def _set_interval(self, interval: str | None) -> None:
        self._client.indices.put_settings(index=self._index, body={"index": {"refresh_interval": interval}})
