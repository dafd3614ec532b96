"""Switch an index's refresh off during a large load, and on again whatever happens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from oskit.cluster.client.failures import cluster_errors
from oskit.cluster.index.mapping import META_KEY
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
        self._meta = self._read_meta()
        self._paused = _LEFT_BEHIND in self._meta.get(META_KEY, {})

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
            own = {**self._meta.get(META_KEY, {}), _LEFT_BEHIND: before}
            self._write_meta({**self._meta, META_KEY: own})
            self._paused = True
            self._set_interval("-1")

    def finish(self) -> None:
        """Restore what was before and refresh once, so that everything indexed is found.

        Raises:
            IndexingError: The cluster refuses, or is gone.
        """
        with cluster_errors(f"refresh the index {self._index!r}", IndexingError):
            if self._paused:
                own = dict(self._meta.get(META_KEY, {}))
                before = own.pop(_LEFT_BEHIND, _DEFAULT)
                self._set_interval(None if before == _DEFAULT else before)
                self._write_meta({**self._meta, META_KEY: own})
                self._paused = False
            self._client.indices.refresh(index=self._index)

    def _read_meta(self) -> dict[str, Any]:
        with cluster_errors(f"read the index {self._index!r}", IndexingError):
            answer = self._client.indices.get_mapping(index=self._index)
        meta: dict[str, Any] = next(iter(answer.values()))["mappings"].get("_meta") or {}
        return meta

    def _write_meta(self, meta: dict[str, Any]) -> None:
        self._client.indices.put_mapping(index=self._index, body={"_meta": meta})
        self._meta = meta

    def _set_interval(self, interval: str | None) -> None:
        self._client.indices.put_settings(index=self._index, body={"index": {"refresh_interval": interval}})
