"""A real OpenSearch on this machine: `LocalNode` as a process, `DockerNode` as a container."""

from __future__ import annotations

from oskit.cluster.node.base import Node, NodeStatus
from oskit.cluster.node.process import LocalNode

__all__ = ["LocalNode", "Node", "NodeStatus"]
