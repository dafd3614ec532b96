"""Connectors for archives that are served elsewhere."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import archives
import pytest

from oskit.archive.archive import open_archive
from oskit.cluster.models.connectors import Remote, connector_body
from oskit.cluster.models.deployment_plan import archives_in
from oskit.cluster.models.sagemaker import write_bundle
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


def test_sagemaker_gets_what_serves_an_export_and_a_connector_that_a_role_invokes(tmp_path: Path) -> None:
    encoder = archives.encoder_archive(tmp_path / "out" / "onnx" / "my_encoder.zip")
    queries = archives.tokenizer_archive(tmp_path / "out" / "tokenizer" / "my_encoder-query.zip")
    archives.write_manifest(encoder)
    archives.write_manifest(queries, kind="tokenizer", model_format="TORCH_SCRIPT")
    opened = [open_archive(encoder), open_archive(queries)]
    write_bundle(opened, tmp_path)
    written = {path.name: path for path in (tmp_path / "sagemaker").iterdir()}
    with tarfile.open(written["model.tar.gz"]) as tar:
        tar.extractall(tmp_path / "ml", filter="data")
    assert [one.sha256 for one in archives_in(tmp_path / "ml")] == [one.sha256 for one in opened]
    assert "oskit serve /opt/ml/model --sagemaker" in written["Dockerfile"].read_text()
    bodies = [json.loads(written[name].read_text()) for name in ("connector.json", "connector-query.json")]
    for body, kind in zip(bodies, ("document", "query"), strict=True):
        (action,) = body["actions"]
        assert body["protocol"] == "aws_sigv4" and list(body["credential"]) == ["roleArn"]
        assert body["parameters"]["region"] == "REGION" and body["parameters"]["service_name"] == "sagemaker"
        assert (
            action["url"] == "https://runtime.sagemaker.REGION.amazonaws.com/endpoints/my-encoder/invocations"
        )
        assert action["headers"] == {"content-type": "application/json"}
        assert f'"prompt_name": "{kind}"' in action["request_body"]
    with pytest.raises(UsageError, match="--role-arn"):
        url = "https://runtime.sagemaker.eu-north-1.amazonaws.com/endpoints/e/invocations"
        connector_body(opened[0], Remote(url, "token"), "name")
