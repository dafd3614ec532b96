"""A real OpenSearch on this machine: `LocalNode` as a process, `DockerNode` as a container."""

from __future__ import annotations

from oskit.localnode.container import DockerNode
from oskit.localnode.node import Node, NodeStatus, node_folder, read_record
from oskit.localnode.process import LocalNode

__all__ = ["DockerNode", "LocalNode", "Node", "NodeStatus", "find_node"]


def find_node(name: str) -> Node:
    """The node of that name, of the kind that it was last started as; it need not run."""
    record = read_record(node_folder(name))
    return DockerNode(name) if record and record["kind"] == "docker" else LocalNode(name)
