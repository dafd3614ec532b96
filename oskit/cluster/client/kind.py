"""What answers at an address: OpenSearch of one's own, a service of Amazon, which version, who we are there.

Everything is asked lazily and once a client, and a path that is refused there (403, 404, a page) is not known
rather than an error: the first request that a command needs tells that better.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from opensearchpy.exceptions import TransportError
from packaging.version import InvalidVersion, Version

from oskit.cluster.client.aws import SERVICES, Service
from oskit.cluster.client.failures import cluster_errors, heard
from oskit.cluster.client.server_words import NOT_OFFERED
from oskit.errors import ClusterConnectionError

if TYPE_CHECKING:
    from opensearchpy import OpenSearch

Known = TypeVar("Known")


@dataclass(frozen=True)
class ClusterKind:
    """What a cluster is.

    Attributes:
        service: Who runs it: ``self-managed``, or Amazon's ``es`` or ``aoss`` (Serverless).
        name: The cluster's own.
        number: OpenSearch's version, as it says it; empty where it does not.
    """

    service: Service
    name: str = ""
    number: str = ""

    @property
    def version(self) -> Version | None:
        """To compare with; None where it is not known."""
        try:
            return Version(self.number.removesuffix("-SNAPSHOT"))
        except InvalidVersion:
            return None

    def __str__(self) -> str:
        """For messages: ``Amazon OpenSearch Service (OpenSearch 2.19.0)``."""
        said = f"OpenSearch {self.number}" if self.number else ""
        if self.service == "self-managed":
            return said or "An OpenSearch that hides its version"
        return SERVICES[self.service] + (f" ({said})" if said else "")


class Nodes(NamedTuple):
    """What is seen of a cluster's nodes.

    Attributes:
        roles: Of each node; empty if we are not permitted to see the nodes.
        plugins: Names of the plugins that every node has, for example ``opensearch-ml``.
    """

    roles: tuple[frozenset[str], ...]
    plugins: frozenset[str]


class User(NamedTuple):
    """Who we are, as the security plugin says.

    Attributes:
        name: Of the user.
        roles: That the user has.
    """

    name: str
    roles: tuple[str, ...]


def kind_of(client: OpenSearch) -> ClusterKind:
    """What the client talks to; one request the first time.

    Raises:
        ClusterConnectionError: Nothing answers, or something that is not OpenSearch.
        ClusterAuthError: The credentials are refused (401).
    """
    return _once(client, "kind", _ask_kind)


def nodes_of(client: OpenSearch) -> Nodes:
    """The nodes' roles and plugins; nothing where they may not be seen. One request the first time."""
    return _once(client, "nodes", _ask_nodes)


def user_of(client: OpenSearch) -> User | None:
    """Who we are; None where no security plugin says so. One request the first time."""
    return _once(client, "user", _ask_user)


def service_of(client: OpenSearch) -> Service:
    """Who runs the cluster, as the address or ``--aws-service`` says; sends nothing."""
    return getattr(client.transport, "service", "self-managed")


def _once(client: OpenSearch, what: str, ask: Callable[[OpenSearch], Known]) -> Known:
    known = vars(client.transport).setdefault("oskit_known", {})
    if what not in known:
        known[what] = ask(client)
    answer: Known = known[what]
    return answer


def _seen(client: OpenSearch, path: str, action: str) -> Any:
    """An answer; None where the path is refused."""
    with cluster_errors(action):
        try:
            return client.transport.perform_request("GET", path)
        except TransportError as failure:
            if failure.status_code in (400, 403, 404, 405) or heard(failure) is NOT_OFFERED:
                return None
            raise


def _ask_kind(client: OpenSearch) -> ClusterKind:
    service = service_of(client)
    root = None if service == "aoss" else _seen(client, "/", "reach the cluster")
    if root is None:
        return ClusterKind(service)
    version = root.get("version")
    if not isinstance(version, dict) or "number" not in version:
        raise ClusterConnectionError("What answers at this address is not OpenSearch", hint="Check --url")
    if version.get("distribution") != "opensearch":
        raise ClusterConnectionError(
            f"What answers at this address is not OpenSearch but Elasticsearch {version['number']}",
            hint="oskit needs OpenSearch 2.15 or newer",
        )
    return ClusterKind(service, str(root.get("cluster_name", "")), str(version["number"]))


def _ask_nodes(client: OpenSearch) -> Nodes:
    answer = None
    if service_of(client) != "aoss":
        answer = _seen(client, "/_nodes/plugins", "list the cluster's nodes")
    nodes = list((answer or {}).get("nodes", {}).values())
    plugins = [frozenset(plugin["name"] for plugin in node.get("plugins", ())) for node in nodes]
    return Nodes(
        tuple(frozenset(node.get("roles", ())) for node in nodes),
        frozenset.intersection(*plugins) if plugins else frozenset(),
    )


def _ask_user(client: OpenSearch) -> User | None:
    if service_of(client) == "aoss":
        return None
    said = _seen(client, "/_plugins/_security/authinfo", "ask who we are")
    if not isinstance(said, dict) or "user_name" not in said:
        return None
    return User(str(said["user_name"]), tuple(map(str, said.get("roles") or ())))
