"""``oskit serve`` as a process, and what a remote deployment may leave behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from opensearchpy import OpenSearch

from oskit.cluster.models.registry import get_model, search

TOKEN = "a-token-of-the-tests"


@contextmanager
def serve(*arguments: str, token: str = TOKEN) -> Iterator[tuple[str, int]]:
    """URL and process of a service."""
    command = [sys.executable, "-m", "oskit", "serve", *arguments, "--port", "0", "--json", "--quiet"]
    environment = {**os.environ, "OSKIT_SERVE_TOKEN": token}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        told = ""
        while not told.endswith("\n}\n"):
            told += process.stdout.readline()
        try:
            yield json.loads(told)["url"], process.pid
        finally:
            process.terminate()
    assert process.returncode == 0


def state(client: OpenSearch) -> Any:
    """What a deployment may leave behind: settings, and ids of models, groups and connectors."""
    settings = client.cluster.get_settings(params={"flat_settings": "true"})
    kinds = ("models", "model_groups", "connectors")
    found = {kind: search(client, kind, query={"match_all": {}}, _source=False) for kind in kinds}
    ids = {kind: sorted(hit["_id"] for hit in hits) for kind, hits in found.items()}
    # A search sees a deletion up to a second later.
    ids["models"] = [one for one in ids["models"] if get_model(client, one)]
    return settings, ids
