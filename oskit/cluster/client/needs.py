"""What each command needs of a cluster, and a check before it starts: what cannot work there is told in one
line, with the way that does.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote

from opensearchpy.exceptions import OpenSearchException
from packaging.version import Version

from oskit.cluster.client.calls import PERMISSION_CHECK
from oskit.cluster.client.connection import ConnectionSettings, connect
from oskit.cluster.client.kind import ClusterKind, kind_of, user_of
from oskit.cluster.client.requests import REQUESTS
from oskit.cluster.client.retry import impatient
from oskit.errors import ClusterAuthError, ClusterSettingsError

if TYPE_CHECKING:
    from opensearchpy import OpenSearch

ROLES = "docs/permissions.md has a role for each command"


class Needs(NamedTuple):
    """What a command needs; of a command with an option only what the option adds.

    Attributes:
        requests: Without any of these the command ends.
        also: What some cases need, or what only tells more: who may not has the other cases.
        since: OpenSearch's version.
        instead: What does work where this does not.
    """

    requests: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    since: str = ""
    instead: str = ""


_HERE = (
    "Encode here, which works everywhere: oskit ingest --archive DIR --encode client, "
    "oskit search --archive DIR"
)
_ML = "/_plugins/_ml"
_NAMED = ("GET /INDEX/_alias", "GET /INDEX/_mapping")
_TEMPLATES = ("GET /_index_template", "GET /_template", "POST /_index_template/_simulate_index/NAME")
_MODEL = (f"POST {_ML}/models/_search", f"POST {_ML}/_predict/KIND/ID")
_SEARCH = (*_NAMED, "GET /INDEX/_settings", "POST /INDEX/_search")
_LIVE = (*_SEARCH, "POST /INDEX/_refresh", "GET /INDEX/_segments", "GET /INDEX/_stats")
_RETIRE = (
    f"POST {_ML}/models/_search",
    f"GET {_ML}/profile",
    f"POST {_ML}/models/ID/_undeploy",
    f"GET {_ML}/models/ID",
)
_SEARCHED = ("GET /_cluster/state/WHAT", f"POST {_ML}/agents/_search", f"POST {_ML}/connectors/_search",
             f"POST {_ML}/memory_containers/_search", "PUT /_cluster/settings")  # fmt: skip

# fmt: off
NEEDS: dict[str, Needs] = {
    "deploy": Needs(
        (f"POST {_ML}/models/_search", f"POST {_ML}/models/_register_meta", f"GET {_ML}/models/ID",
         f"POST {_ML}/models/ID/upload_chunk/N", f"POST {_ML}/models/ID/_deploy", f"GET {_ML}/tasks/ID",
         f"POST {_ML}/_predict/KIND/ID"),
        ("GET /", "GET /_nodes/WHAT", "GET /_nodes/stats/WHAT", "GET /_cluster/settings",
         "PUT /_cluster/settings", f"GET {_ML}/profile", f"POST {_ML}/models/ID/_undeploy",
         f"DELETE {_ML}/models/ID", f"POST {_ML}/model_groups/_search", f"DELETE {_ML}/model_groups/ID"),
        instead=f"Have the cluster ask a service: oskit serve and oskit deploy --remote URL. {_HERE}"),
    "deploy --remote": Needs(
        (f"POST {_ML}/connectors/_search", f"POST {_ML}/models/_search", f"POST {_ML}/connectors/_create",
         f"POST {_ML}/models/_register", f"GET {_ML}/models/ID", f"POST {_ML}/_predict/KIND/ID"),
        ("GET /", "GET /_cluster/settings", "PUT /_cluster/settings", f"POST {_ML}/models/ID/_deploy",
         f"GET {_ML}/profile", f"POST {_ML}/models/ID/_undeploy", f"DELETE {_ML}/models/ID",
         f"GET {_ML}/connectors/ID", f"DELETE {_ML}/connectors/ID",
         f"POST {_ML}/model_groups/_search", f"DELETE {_ML}/model_groups/ID"),
        instead=_HERE),
    "models": Needs(
        (f"POST {_ML}/models/_search",),
        ("GET /", "GET /_nodes/WHAT", f"GET {_ML}/profile", f"POST {_ML}/connectors/_search")),
    "undeploy": Needs(_RETIRE, ("GET /", "GET /_nodes/WHAT", *_SEARCHED)),
    "delete": Needs(
        (*_RETIRE, f"DELETE {_ML}/models/ID", f"POST {_ML}/model_groups/_search",
         f"DELETE {_ML}/model_groups/ID"),
        ("GET /", "GET /_nodes/WHAT", f"GET {_ML}/connectors/ID", f"DELETE {_ML}/connectors/ID",
         *_SEARCHED)),
    "ingest": Needs(
        (*_NAMED, "GET /INDEX", "GET /INDEX/_settings", "POST /INDEX/_refresh", "POST /INDEX/_bulk"),
        ("GET /", "PUT /INDEX", "PUT /INDEX/_mapping", "POST /INDEX/_mget", "POST /INDEX/_search",
         "POST /INDEX/_count", "DELETE /INDEX", "GET /_data_stream/NAME", "POST /INDEX/_analyze",
         *_TEMPLATES)),
    "ingest --encode cluster": Needs(
        (*_MODEL, "GET /_ingest/pipeline/NAME"),
        ("PUT /_ingest/pipeline/NAME", f"GET {_ML}/models/ID", "POST /_ingest/pipeline/NAME/_simulate",
         "GET /_cluster/state/WHAT"),
        instead=_HERE),
    "ingest --index-kind sparse_vector": Needs(since="3.3", instead="Take --index-kind rank_features"),
    "ingest --index-kind semantic": Needs(
        _MODEL, since="3.1", instead="Take --index-kind rank_features, and --encode cluster or client"),
    "ingest --delete-missing": Needs(
        ("GET /INDEX/_stats", "POST /INDEX/_count", "POST /INDEX/_search", "POST /_search/scroll",
         "DELETE /_search/scroll"), instead="Load everything into a new index"),
    "ingest --recreate": Needs(
        ("PUT /INDEX", "PUT /INDEX/_mapping", "DELETE /INDEX", "GET /_ingest/pipeline/NAME"),
        ("DELETE /_ingest/pipeline/NAME", "PUT /_ingest/pipeline/NAME", "GET /_cluster/health",
         "GET /_cluster/state/WHAT", "PUT /INDEX/_settings", "PUT /INDEX/_clone/NAME", "POST /_aliases")),
    "ingest --release": Needs(
        ("PUT /INDEX", "PUT /INDEX/_mapping", "POST /_aliases", "POST /INDEX/_search", "POST /INDEX/_count",
         "GET /INDEX/_stats", "GET /INDEX/_segments"),
        ("DELETE /INDEX",), instead="Load a new index, and move the alias with POST _aliases"),
    "search": Needs(
        _SEARCH,
        ("GET /", "GET /INDEX", "POST /_msearch", "POST /INDEX/_count", "POST /INDEX/_field_caps",
         "POST /INDEX/_validate/query", "GET /INDEX/_stats", "POST /INDEX/_analyze", *_MODEL,
         f"GET {_ML}/models/ID")),
    "search --two-phase": Needs(since="2.15", instead="Leave it out: the hits are the same"),
    "search --analyzer": Needs(since="3.1", instead="Encode the query here: --archive DIR"),
    "search --hybrid": Needs(("GET /INDEX",), since="2.19", instead="Search in one way at a time"),
    "playground": Needs(
        (*_SEARCH, "GET /INDEX", "POST /INDEX/_count"),
        ("GET /", "POST /_msearch", "POST /INDEX/_field_caps", "POST /INDEX/_validate/query",
         "GET /INDEX/_stats", "POST /INDEX/_analyze", *_MODEL, f"GET {_ML}/models/ID")),
    "verify": Needs(
        _LIVE, ("GET /", "GET /INDEX", "POST /_msearch", "POST /INDEX/_analyze", *_MODEL),
        instead="Search a file: oskit search --queries FILE -o run.trec, and compare it with oskit evaluate"),
    "sweep": Needs(_LIVE, ("GET /", "POST /INDEX/_count", *_MODEL)),
    "tune": Needs(_LIVE, ("GET /", "GET /INDEX", "POST /_msearch", "PUT /_search/pipeline/NAME",
                          "GET /_search/pipeline/NAME", *_MODEL)),
    "pipeline show": Needs(("GET /INDEX/_alias", "GET /INDEX"), ("GET /", "GET /_ingest/pipeline/NAME")),
    "pipeline put": Needs(
        ("GET /INDEX/_alias", "GET /INDEX", *_MODEL, "GET /_ingest/pipeline/NAME",
         "PUT /_ingest/pipeline/NAME", "POST /_ingest/pipeline/_simulate", "PUT /INDEX/_settings"),
        ("GET /", "PUT /INDEX/_mapping", "POST /_ingest/pipeline/NAME/_simulate",
         "DELETE /_ingest/pipeline/NAME"),
        instead=_HERE),
    "pipeline check": Needs(
        ("GET /INDEX/_alias", "GET /INDEX"),
        ("GET /", "GET /_ingest/pipeline/NAME", "POST /_ingest/pipeline/NAME/_simulate")),
    "index show": Needs((*_NAMED, "GET /INDEX/_settings"), ("GET /", "GET /INDEX")),
    "index adopt": Needs(
        ("GET /INDEX/_alias", "GET /INDEX", "PUT /INDEX/_mapping"),
        ("GET /", "POST /INDEX/_search", "GET /_ingest/pipeline/NAME", *_MODEL)),
    "releases": Needs(
        ("GET /INDEX/_alias", "GET /INDEX", "POST /INDEX/_count", "GET /INDEX/_stats"), ("GET /",)),
    "rollback": Needs(
        ("GET /INDEX/_alias", "GET /INDEX", "POST /_aliases", "GET /INDEX/_mapping", "PUT /INDEX/_mapping"),
        ("GET /", "GET /INDEX/_stats", f"POST {_ML}/models/_search", f"POST {_ML}/models/ID/_deploy")),
}
# fmt: on


def connect_for(settings: ConnectionSettings, *commands: str, index: str | None = None) -> OpenSearch:
    """A client, once :func:`check` has let these commands pass."""
    client = connect(settings)
    check(client, *commands, index=index)
    return client


def check(client: OpenSearch, *commands: str, index: str | None = None) -> ClusterKind:
    """Refuse what cannot work on this cluster, before anything is done.

    Args:
        commands: Names in :data:`NEEDS`: the command, and the command with each option that needs more.
        index: The index, for which permissions may be others than for the rest.

    Raises:
        ClusterConnectionError: Nothing answers, or something that is not OpenSearch.
        ClusterSettingsError: The cluster has not what the command needs; the hint is what does work.
        ClusterAuthError: The security plugin says that a permission is missing.
    """
    kind = kind_of(client)
    for command in commands:
        if problem := why_not(kind, command):
            raise ClusterSettingsError(f"oskit {command} {problem}", hint=NEEDS[command].instead or None)
    asked = dict.fromkeys(request for command in commands for request in NEEDS[command].requests)
    lacking = denied(client, asked, index).values()
    if missing := dict.fromkeys(action for actions in lacking for action in actions):
        user = user_of(client)
        raise ClusterAuthError(
            f"oskit {commands[0]} may not be run by {user.name if user else 'this user'}, who lacks "
            f"{', '.join(missing)}",
            hint=f"{ROLES}, for the cluster's administrator",
        )
    return kind


def why_not(kind: ClusterKind, command: str) -> str | None:
    """Why a command cannot work on such a cluster; None if nothing is known against it."""
    needs = NEEDS[command]
    for name in needs.requests:
        exists = {"aoss": bool(REQUESTS[name].serverless), "es": REQUESTS[name].managed}
        if not exists.get(kind.service, True):
            return f"cannot work on {kind}: there is no {name}"
    if needs.since and kind.version is not None and kind.version < Version(needs.since):
        return f"needs OpenSearch {needs.since} or newer, and this is {kind}"
    return None


def denied(client: OpenSearch, requests: Iterable[str], index: str | None = None) -> dict[str, list[str]]:
    """Of requests those that the security plugin does not permit, with what is missing.

    There are none where it is not there or does not say. It is asked by ``perform_permission_check``, with
    which nothing is carried out; one that does not know the parameter refuses the whole request. Without an
    index nothing is asked about indexes.
    """
    asked = {name: request for name in requests if (request := REQUESTS[name]).body is not None}
    asked = {name: request for name, request in asked.items() if index or "INDEX" not in name}
    if not asked or user_of(client) is None:
        return {}
    missing: dict[str, list[str]] = {}
    for name, request in asked.items():
        method, path = _nowhere(name, index)
        body = json.loads(request.body or "null")
        with suppress(OpenSearchException), impatient(client):
            answer = client.transport.perform_request(method, path, {PERMISSION_CHECK: "true"}, body)
            if lacking := list(map(str, answer.get("missingPrivileges") or ())):
                missing[name] = lacking
    return missing


def _nowhere(name: str, index: str | None) -> tuple[str, str]:
    """Method and path of a row, about this index, and else about nothing that is there."""
    words = {"ID": "oskit-permission-check", "NAME": "oskit-permission-check", "N": "0", "INDEX": index or ""}
    method, path = name.split(" ")
    return method, "/".join(quote(words.get(part, part), safe="") for part in path.split("/"))
