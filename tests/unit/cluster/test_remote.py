"""Connectors for archives that are served elsewhere."""

from __future__ import annotations

from pathlib import Path

import archives
import pytest

from oskit.archive.archive import open_archive
from oskit.cluster.models.remote import Remote, connector_body
from oskit.errors import UsageError


def test_the_connector_calls_the_archive_s_own_path(tmp_path: Path) -> None:
    encoder = open_archive(archives.encoder_archive(tmp_path / "encoder" / "e.zip"))
    queries = open_archive(archives.tokenizer_archive(tmp_path / "queries" / "q.zip"))
    for url in ("http://10.0.0.5:8080", "http://10.0.0.5:8080/", "http://10.0.0.5:8080/v1/sparse"):
        assert Remote(url).endpoint(encoder) == "http://10.0.0.5:8080/v1/sparse"
    url = "https://encoders.example.org/models/english"
    assert Remote(url).endpoint(queries) == f"{url}/v1/sparse/query"
    for url in (
        "",
        "10.0.0.5:8080",
        "ftp://a",
        "http://",
        "http://a:b@c",
        "http://a/?x=1",
        "http://a/${x}",
        "http://[x",
    ):
        with pytest.raises(UsageError, match="not the URL of a service"):
            Remote(url).endpoint(encoder)
    (action,) = connector_body(encoder, Remote("http://a", "secret"), "name")["actions"]
    assert "secret" not in str(action) and action["headers"]["authorization"] == "Bearer ${credential.key}"
    assert "authorization" not in connector_body(encoder, Remote("http://a"), "name")["actions"][0]["headers"]
