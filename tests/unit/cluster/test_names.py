"""What a name stands for, by the answers that a cluster gives."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from opensearchpy.exceptions import NotFoundError

from oskit.cluster.client.calls import Call, changes, record_change
from oskit.cluster.index.names import Target, resolve
from oskit.cluster.index.releases import read_alias
from oskit.errors import IndexingError, UsageError


def cluster(**indexes: dict[str, Any]) -> Any:
    """A client that knows these indexes and their aliases."""

    def get_alias(index: str) -> dict[str, Any]:
        found = {
            name: {"aliases": aliases}
            for name, aliases in indexes.items()
            if index == name or index in aliases
        }
        if not found:
            raise NotFoundError(404, "alias [x] missing", {})
        return found

    def get_mapping(index: str, params: object) -> dict[str, Any]:
        return {name: {} for name in indexes if name.startswith(f".ds-{index}-")}

    def get_data_stream(name: str) -> dict[str, Any]:
        return {"data_streams": [{"name": name, "timestamp_field": {"name": "when"}}]}

    return SimpleNamespace(
        indices=SimpleNamespace(get_alias=get_alias, get_mapping=get_mapping, get_data_stream=get_data_stream)
    )


def test_an_index_an_alias_and_nothing():
    client = cluster(one={"live": {}}, other={})
    assert resolve(client, "one") == Target("one", "one")
    assert resolve(client, "one", writing=True) == Target("one", "one")
    assert resolve(client, "live", writing=True) == Target("live", "one")
    assert resolve(client, "nobody") is None


def test_an_alias_of_several_is_its_write_index_or_nothing():
    client = cluster(a={"live": {"is_write_index": True}}, b={"live": {}})
    assert resolve(client, "live", writing=True) == Target("live", "a")
    with pytest.raises(IndexingError, match="an alias of 2 indexes, which is more than one: a, b"):
        resolve(client, "live")
    with pytest.raises(IndexingError, match="none of which takes writes"):
        resolve(cluster(a={"live": {}}, b={"live": {}}), "live", writing=True)
    with pytest.raises(IndexingError, match="an alias of an index, none of which takes writes"):
        resolve(cluster(a={"live": {"is_write_index": False}}), "live", writing=True)


def test_what_an_alias_hides_is_known_to_who_reads():
    client = cluster(all={"mine": {"filter": {"term": {"owner": "me"}}}})
    assert resolve(client, "mine") == Target("mine", "all", {"term": {"owner": "me"}})
    assert resolve(client, "mine", writing=True) == Target("mine", "all")


def test_a_data_stream_is_written_by_its_name_and_read_in_all_its_indexes():
    parts = (".ds-logs-000001", ".ds-logs-000002")
    client = cluster(**{part: {} for part in reversed(parts)})
    written = resolve(client, "logs", writing=True)
    assert written == Target("logs", parts[1], parts=parts, timestamp="when") and written.written == "logs"
    assert resolve(client, "logs") == Target("logs", ",".join(parts), parts=parts)
    with pytest.raises(IndexingError, match="'logs' is a data stream, and releases are behind an alias"):
        read_alias(client, "logs")


def test_patterns_are_refused():
    for name in ("a,b", "a*", "_all", "-a", "..", "", "<a-{now/d}>", "é" * 128, "caf\udce9"):
        with pytest.raises(UsageError, match="cannot be an index's name"):
            resolve(cluster(a={}, b={}), name)


def test_changes_are_told_in_their_order_and_reads_are_none():
    record_change("PUT", "/before")
    with changes() as made:
        for method, path in [
            ("PUT", "/a"), ("GET", "/a"), ("POST", "/a/_bulk"), ("POST", "/a/_search"), ("POST", "/a/_bulk"),
            ("POST", "/_search/scroll"), ("DELETE", "/_search/scroll"),
            ("POST", "/m/upload_chunk/0"), ("POST", "/m/upload_chunk/1"), ("DELETE", "/a"),
        ]:  # fmt: skip
            record_change(method, path)
    assert str(made) == "PUT a, POST a/_bulk (2 times), POST m/upload_chunk/… (2 times), DELETE a"
    assert str(Call("PUT", "a", {"x": None}, "twice")) == 'PUT a {"x": null}  (twice)'
