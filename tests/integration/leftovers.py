"""What is left of an archive on a cluster."""

from __future__ import annotations

from opensearchpy import OpenSearch

from oskit.archive.archive import Archive
from oskit.cluster.models.registry import list_models, search_groups, wait_until


def models_of(client: OpenSearch, archive: Archive) -> list[str]:
    """Ids of the models with its content."""
    found = list_models(client, {"term": {"model_content_hash_value": archive.sha256}})
    return [model.model_id for model in found]


def nothing_is_left(client: OpenSearch, archive: Archive) -> bool:
    """No model, no group and no chunk; searches see a deletion a second later."""
    return bool(wait_until(lambda: _is_clean(client, archive) or None, wait_s=5, first_pause_s=0.3))


def orphaned_chunks(client: OpenSearch) -> set[str]:
    """Ids of models of which there are parts, but nothing else."""
    chunks = client.transport.perform_request(
        "POST",
        "/_plugins/_ml/models/_search",
        body={
            "query": {"bool": {"must_not": {"exists": {"field": "name"}}}},
            "_source": ["model_id"],
            "size": 1000,
        },
    )
    known = {model.model_id for model in list_models(client)}
    return {hit["_source"]["model_id"] for hit in chunks["hits"]["hits"]} - known


def _is_clean(client: OpenSearch, archive: Archive) -> bool:
    groups = search_groups(client, {"match_all": {}}).values()
    return not models_of(client, archive) and archive.name not in groups and not orphaned_chunks(client)
