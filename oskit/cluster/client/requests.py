"""ONE table of the requests that commands make: the permission each needs, and where it does not exist.

docs/permissions.md is written from it (``make docs``); tests hold it against the requests that each command
really makes. Actions are those of the security plugin, as a cluster with it named them; what Amazon
OpenSearch Serverless lacks, and its permissions, come from its documentation ("Supported operations and
plugins").
"""

from __future__ import annotations

import re
from typing import NamedTuple

ML = "cluster:admin/opensearch/ml"


class Request(NamedTuple):
    """A row of the table.

    Attributes:
        action: What the security plugin checks, several with blanks between.
        serverless: Permission of a data access policy of Serverless; empty where the request does not exist.
        body: That makes the request a whole one, where the security plugin is asked whether it would be
            permitted; None where that is not asked, since it reads, or cannot be asked.
        managed: Whether Amazon OpenSearch Service takes it.
    """

    action: str
    serverless: str = ""
    body: str | None = None
    managed: bool = True


_PIPELINE = '{"processors": []}'

# fmt: off
REQUESTS: dict[str, Request] = {
    # The cluster
    "GET /": Request("cluster:monitor/main"),
    "GET /_nodes/WHAT": Request("cluster:monitor/nodes/info"),
    "GET /_nodes/stats/WHAT": Request("cluster:monitor/nodes/stats"),
    "GET /_cluster/settings": Request("cluster:monitor/state"),
    "PUT /_cluster/settings": Request("cluster:admin/settings/update"),
    "GET /_cluster/state/WHAT": Request("cluster:monitor/state"),
    "GET /_cluster/health": Request("cluster:monitor/health"),
    "GET /_index_template": Request("indices:admin/index_template/get", "DescribeCollectionItems"),
    "GET /_template": Request("indices:admin/template/get"),
    "POST /_index_template/_simulate_index/NAME": Request("indices:admin/index_template/simulate_index"),
    "GET /_ingest/pipeline": Request("cluster:admin/ingest/pipeline/get"),
    "GET /_ingest/pipeline/NAME": Request("cluster:admin/ingest/pipeline/get", "DescribeCollectionItems"),
    "PUT /_ingest/pipeline/NAME": Request(
        "cluster:admin/ingest/pipeline/put", "CreateCollectionItems", _PIPELINE),
    "DELETE /_ingest/pipeline/NAME": Request("cluster:admin/ingest/pipeline/delete", "DeleteCollectionItems"),
    "POST /_ingest/pipeline/_simulate": Request(
        "cluster:admin/ingest/pipeline/simulate", "DescribeCollectionItems"),
    "POST /_ingest/pipeline/NAME/_simulate": Request(
        "cluster:admin/ingest/pipeline/simulate"),
    "GET /_search/pipeline/NAME": Request("cluster:admin/search/pipeline/get", "DescribeCollectionItems"),
    "PUT /_search/pipeline/NAME": Request("cluster:admin/search/pipeline/put", "CreateCollectionItems"),
    # An index
    "GET /INDEX/_alias": Request("indices:admin/aliases/get", "DescribeIndex"),  # there read by GET /INDEX
    "GET /INDEX": Request("indices:admin/get", "DescribeIndex"),
    "HEAD /INDEX": Request("indices:admin/get", "DescribeIndex"),
    "GET /INDEX/_mapping": Request("indices:admin/mappings/get", "DescribeIndex"),
    "GET /INDEX/_settings": Request("indices:monitor/settings/get", "DescribeIndex"),
    "GET /_data_stream/NAME": Request("indices:admin/data_stream/get"),
    "GET /INDEX/_stats": Request("indices:monitor/stats"),
    "GET /INDEX/_segments": Request("indices:monitor/segments"),
    "POST /INDEX/_analyze": Request("indices:admin/analyze", "ReadDocument"),
    "PUT /INDEX": Request("indices:admin/create", "CreateIndex", ""),
    "DELETE /INDEX": Request("indices:admin/delete", "DeleteIndex"),
    "PUT /INDEX/_mapping": Request("indices:admin/mapping/put", "UpdateIndex"),
    "PUT /INDEX/_settings": Request("indices:admin/settings/update", "UpdateIndex"),
    "POST /INDEX/_forcemerge": Request("indices:admin/forcemerge"),
    "PUT /INDEX/_clone/NAME": Request("indices:admin/resize"),
    "POST /_aliases": Request("indices:admin/aliases", "CreateCollectionItems"),
    # Its documents
    "POST /INDEX/_refresh": Request("indices:admin/refresh*", "-"),  # it refreshes by itself
    "POST /INDEX/_bulk": Request("indices:data/write/bulk* indices:data/write/index "
                                 "indices:data/write/delete", "WriteDocument"),
    "POST /INDEX/_search": Request("indices:data/read/search", "ReadDocument"),
    "POST /_msearch": Request("indices:data/read/msearch", "ReadDocument"),
    "POST /INDEX/_mget": Request("indices:data/read/mget*", "ReadDocument"),
    "POST /INDEX/_count": Request("indices:data/read/search", "ReadDocument"),
    "POST /INDEX/_field_caps": Request("indices:data/read/field_caps*", "ReadDocument"),
    "POST /INDEX/_validate/query": Request("indices:admin/validate/query", "ReadDocument"),
    "POST /_search/scroll": Request("indices:data/read/scroll"),
    "DELETE /_search/scroll": Request("indices:data/read/scroll/clear"),
    # Models
    "POST /_plugins/_ml/models/_search": Request(f"{ML}/models/search", "DescribeMLResource"),
    "GET /_plugins/_ml/models/ID": Request(f"{ML}/models/get", "DescribeMLResource"),
    "POST /_plugins/_ml/models/_register_meta": Request(
        f"{ML}/register_model_meta", "",
        '{"name": "n", "model_format": "ONNX", "model_content_hash_value": "h", "total_chunks": 1, '
        '"function_name": "SPARSE_ENCODING"}', managed=False),
    "POST /_plugins/_ml/models/ID/upload_chunk/N": Request(
        f"{ML}/upload_model_chunk", "", '"x"', managed=False),
    "POST /_plugins/_ml/models/_register": Request(
        f"{ML}/register_model", "CreateMLResource", '{"name": "n", "function_name": "remote"}'),
    "POST /_plugins/_ml/models/ID/_deploy": Request(f"{ML}/deploy_model*", "UpdateMLResource", ""),
    "POST /_plugins/_ml/models/ID/_undeploy": Request(f"{ML}/undeploy_model*", "UpdateMLResource", ""),
    "DELETE /_plugins/_ml/models/ID": Request(f"{ML}/models/delete", "DeleteMLResource", ""),
    "GET /_plugins/_ml/tasks/ID": Request(f"{ML}/tasks/get"),
    "GET /_plugins/_ml/profile": Request(f"{ML}/profile/nodes"),
    "POST /_plugins/_ml/_predict/KIND/ID": Request(f"{ML}/predict"),
    "POST /_plugins/_ml/connectors/_search": Request(f"{ML}/connectors/search", "DescribeMLResource"),
    "POST /_plugins/_ml/connectors/_create": Request(
        f"{ML}/create_connector", "CreateMLResource",
        '{"name": "n", "version": "1", "protocol": "http", "credential": {"key": "k"}}'),
    "GET /_plugins/_ml/connectors/ID": Request(f"{ML}/connectors/get", "DescribeMLResource"),
    "DELETE /_plugins/_ml/connectors/ID": Request(f"{ML}/connectors/delete", "DeleteMLResource", ""),
    "POST /_plugins/_ml/model_groups/_search": Request(f"{ML}/model_groups/search", "DescribeMLResource"),
    "DELETE /_plugins/_ml/model_groups/ID": Request(f"{ML}/model_groups/delete", "DeleteMLResource", ""),
    "POST /_plugins/_ml/agents/_search": Request(f"{ML}/agents/search"),
    "POST /_plugins/_ml/memory_containers/_search": Request(f"{ML}/memory_containers/search"),
}
# fmt: on

_PARTS = {"INDEX/": r"([^/_][^/]*/)?", "INDEX": r"[^/_][^/]*"}


def _pattern(request: str) -> re.Pattern[str]:
    """What matches the requests of a row; of settings, statistics and profiles also parts are asked for."""
    parts = re.split(r"(INDEX/|INDEX|\b(?:NAME|ID|N|KIND|WHAT)\b)", request)
    path = "".join(_PARTS.get(part, r"[^/]+") if n % 2 else re.escape(part) for n, part in enumerate(parts))
    return re.compile(
        path + (r"(/.*)?" if re.search(r"[_/](settings|stats|profile)$", request) else "") + "$"
    )


_PATTERNS = {name: _pattern(name) for name in REQUESTS}


def request_of(method: str, path: str) -> str | None:
    """The row of a request, by its name; None if the table has none.

    >>> request_of("GET", "/articles/_settings/index.uuid")
    'GET /INDEX/_settings'
    """
    made = f"{method} {path.partition('?')[0]}"
    return next((name for name, pattern in _PATTERNS.items() if pattern.match(made)), None)
