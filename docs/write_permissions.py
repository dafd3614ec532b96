"""Write the roles of docs/permissions.md from the table of requests; a test compares them."""

from __future__ import annotations

from pathlib import Path

from oskit.cluster.client.needs import NEEDS
from oskit.cluster.client.requests import REQUESTS

TARGET = Path(__file__).with_name("permissions.md")
START = "<!-- from here on written by `make docs` -->\n"

JOBS = {
    "search": ["search", "search --hybrid", "playground", "index show", "models"],
    "load": [
        name for name in NEEDS if name.startswith(("ingest", "index", "pipeline", "releases", "rollback"))
    ],
    "models": ["deploy", "deploy --remote", "models", "undeploy", "delete"],
    "prove": ["verify", "sweep", "tune"],
}
"""Roles that people ask for; each is the union of its commands' permissions."""

_OF_THE_CLUSTER = (
    "cluster:",
    "indices:admin/index_template/",
    "indices:admin/template/",
    "indices:data/read/scroll",
    "indices:data/read/msearch",
)
_BOTH = {
    "indices:data/write/bulk*": "indices:data/write/bulk",
    "indices:data/read/mget*": "indices:data/read/mget",
}
"""Actions of an index that are checked for the whole request, too."""


def permissions(commands: list[str]) -> tuple[list[str], list[str]]:
    """What a role for these commands permits: of the cluster, and of the indexes."""
    requests = [name for command in commands for name in (*NEEDS[command].requests, *NEEDS[command].also)]
    actions = {action for name in requests for action in REQUESTS[name].action.split()}
    cluster = {action for action in actions if action.startswith(_OF_THE_CLUSTER)}
    return sorted(cluster | {_BOTH[action] for action in actions & _BOTH.keys()}), sorted(actions - cluster)


def role(name: str, commands: list[str]) -> str:
    """A role as ``roles.yml`` has it."""
    cluster, index = permissions(commands)
    lines = [f"oskit_{name}:", "  cluster_permissions:", *(f'    - "{action}"' for action in cluster)]
    if index:
        lines += ["  index_permissions:", '    - index_patterns: ["articles*"]', "      allowed_actions:"]
        lines += [f'        - "{action}"' for action in index]
    return "\n".join(lines)


def serverless(commands: list[str]) -> str:
    """The permissions of a data access policy that commands need; ``-`` where they cannot work."""
    needed = [name for command in commands for name in NEEDS[command].requests]
    if not all(REQUESTS[name].serverless for name in needed):
        return "cannot work there"
    names = {REQUESTS[name].serverless for name in needed} - {"-"}
    return ", ".join(f"`aoss:{name}`" for name in sorted(names))


def generated() -> str:
    """The part of the page below :data:`START`."""
    lines = ["", "## Roles", ""]
    for name, commands in JOBS.items():
        told = ", ".join(f"`{command}`" for command in commands)
        lines += [f"For {told}:", "", "```yaml", role(name, commands), "```", ""]
    lines += ["## Each command", "", "An option's row has what it adds to its command's.", ""]
    lines += [
        "| command | ends without | has other cases with | OpenSearch Serverless |",
        "|---|---|---|---|",
    ]
    for name, needs in NEEDS.items():
        cells = []
        for requests in (needs.requests, needs.also):
            actions = dict.fromkeys(action for one in requests for action in REQUESTS[one].action.split())
            cells.append(", ".join(f"`{action}`" for action in actions) or "-")
        there = serverless([name]) or "as the command"
        since = f" (OpenSearch {needs.since}+)" if needs.since else ""
        lines.append(f"| `{name}`{since} | {cells[0]} | {cells[1]} | {there} |")
    return "\n".join(lines) + "\n"


def page(before: str) -> str:
    """The whole page, with what is below :data:`START` anew."""
    return before.partition(START)[0] + START + generated()


if __name__ == "__main__":
    TARGET.write_text(page(TARGET.read_text(encoding="utf-8")), encoding="utf-8")
