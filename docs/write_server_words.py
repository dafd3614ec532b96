"""Write the tables of the servers' words into the pages, as the code has them; a test compares them."""

from __future__ import annotations

import re
from pathlib import Path

from oskit.cluster.client.server_words import TABLE, Meaning

PAGES = ("deploying.md", "reliability.md")
MARK = re.compile(r"(<!-- words of: (\w+) -->\n).*?(<!-- /words -->)", re.DOTALL)
"""Where a table stands in a page, and of which scope."""

PASSES = {"never": "no", "soon": "yes", "model": "with the model"}


def with_tables(page: str) -> str:
    """The page with its tables as they should be."""
    return MARK.sub(lambda mark: mark[1] + _table(mark[2]) + mark[3], page)


def _table(scope: str) -> str:
    rows = [_row(row) for row in TABLE if row.scope == scope]
    head = "| it says | it means | whose fault | passes | what to do |\n|---|---|---|---|---|\n"
    return f"{head}{''.join(rows)}"


def _row(row: Meaning) -> str:
    words = ", ".join(f"`{words}`" for words in row.words.split(" | ") if words)
    statuses = f"{', ' if words else ''}status {', '.join(map(str, row.statuses))}" if row.statuses else ""
    return f"| {words}{statuses} | {row.means} | {row.fault} | {PASSES[row.passes]} | {row.do} |\n"


if __name__ == "__main__":
    for name in PAGES:
        path = Path(__file__).with_name(name)
        path.write_text(with_tables(path.read_text(encoding="utf-8")), encoding="utf-8")
