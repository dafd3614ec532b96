"""The table of docs/reliability.md, written by the tests that try the faults.

A test of a fault has the marker ``incident``, which says in words what happens when, and the fixture of the
same name, which it tells what it counted afterwards, and what was said: ``then`` is a claim, and
``incident.said(text, *words)`` backs it; a test that never calls that does not pass. Every run compares what
was found with the table; a run with ``--write-incidents`` writes it.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from _pytest.mark.structures import ParameterSet

PAGE = Path(__file__).parents[1] / "docs" / "reliability.md"
BEGIN, END = "<!-- incidents: written by tests/integration -->", "<!-- /incidents -->"
HEAD = (
    "| during | what happens | what oskit does | lost | doubled | left over | seconds |\n" + "|---" * 7 + "|"
)


@dataclass
class Incident:
    """A fault that a test tries, and what it found afterwards.

    Attributes:
        during: The command or the step.
        what: The fault.
        then: What oskit does about it.
        lost, doubled: Documents; None where none are loaded.
        left_over: Models, chunks or groups that nobody wants; None where none are made.
        seconds: From the fault until everything was right again; None where it is told at once.
        log: What ``oskit`` logged during the test.
    """

    during: str
    what: str
    then: str
    lost: int | None = None
    doubled: int | None = None
    left_over: int | None = None
    seconds: float | None = None
    log: list[str] = field(default_factory=list)
    _began: float = 0.0
    _said: bool = False

    def begins(self) -> None:
        """The fault strikes now."""
        self._began = time.monotonic()

    def is_over(self) -> None:
        """Everything is right again."""
        self.seconds = time.monotonic() - self._began

    def said(self, told: object, *words: str) -> None:
        """Each of the regular expressions is found in what a person reads; without any nothing was said.

        Args:
            told: What a command wrote on stderr, an error, or the notes; what was logged is known.
            words: What backs ``then``.
        """
        text = " ".join([*(map(str, told) if isinstance(told, list) else [str(told)]), *self.log])
        for word in words:
            assert re.search(word, text), f"{word!r} was not said: {text}"
        assert words or not text.strip(), f"said: {text}"
        self._said = True

    def documents(
        self, expected: Collection[str], found: Sequence[str], refused: Collection[str] = ()
    ) -> None:
        """Count what is missing in the index and not among the refused, and what is there more than once."""
        self.lost = len(set(expected) - set(found) - set(refused))
        self.doubled = len(found) - len(set(found))
        assert not set(found) - set(expected)
        assert (self.lost, self.doubled) == (0, 0)

    def orphans(self, found: Collection[str]) -> None:
        """Models and the like that should not be there."""
        self.left_over = len(found)
        assert not found

    def row(self) -> str:
        """Its line in the table."""

        def count(number: int | None) -> str:
            return "" if number is None else "nothing" if number == 0 else f"{number}"

        seconds = "" if self.seconds is None else "< 1" if self.seconds < 1 else f"{self.seconds:.0f}"
        cells = (self.during, self.what, self.then, count(self.lost), count(self.doubled))
        return f"| {' | '.join(cells)} | {count(self.left_over)} | {seconds} |"


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--write-incidents``."""
    parser.addoption("--write-incidents", action="store_true", help="write the table of docs/reliability.md")


def fault(*values: object, during: str, what: str, then: str) -> ParameterSet:
    """A parameter set of a test that tries several faults: a row of the table for each."""
    marker = pytest.mark.incident(during=during, what=what, then=then)
    return pytest.param(*values, id=what, marks=marker)


_tried: dict[tuple[str, str], str] = {}


@pytest.fixture
def incident(request: pytest.FixtureRequest) -> Iterator[Incident]:
    """The incident of the test's marker; it counts if the test passes."""
    (marker,) = request.node.iter_markers("incident")
    found = Incident(**marker.kwargs)
    logger, handler = logging.getLogger("oskit"), logging.Handler()
    handler.emit = lambda record: found.log.append(record.getMessage())  # type: ignore[method-assign]
    logger.addHandler(handler)
    yield found
    logger.removeHandler(handler)
    if request.node.stash.get(PASSED, False):
        assert found._said, "what was said? incident.said(text, *words)"
        # What the report of the test carries, the process that gathers all reports sees.
        request.node.user_properties.append(("incident", found.row()))


PASSED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Let fixtures know whether their test passed."""
    report = yield
    if report.when == "call":
        item.stash[PASSED] = report.passed
    return report


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Gather the rows, whichever process tried the fault."""
    if report.when == "teardown":
        for name, row in report.user_properties:
            if name == "incident":
                assert _key(str(row)) not in _tried, "two tests say the same"
                _tried[_key(str(row))] = str(row)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write the table, or fail where it says something else than the tests found."""
    if not _tried or hasattr(session.config, "workerinput"):
        return
    page = PAGE.read_text(encoding="utf-8")
    before, table, after = re.split(f"{re.escape(BEGIN)}|{re.escape(END)}", page)
    known = {_key(row): row for row in table.strip().splitlines()[2:]}
    if session.config.getoption("--write-incidents"):
        rows = {**known, **_tried}
        if _is_complete(session):
            rows = {key: row for key, row in rows.items() if key in _tried}
        table = "\n".join([HEAD, *(rows[key] for key in sorted(rows))])
        PAGE.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}", encoding="utf-8")
        return
    problems = [
        f"{' / '.join(key)}: {_without_time(known.get(key, 'not there'))}"
        for key, row in _tried.items()
        if _without_time(known.get(key, "")) != _without_time(row)
    ]
    if _is_complete(session):
        problems += [f"{' / '.join(key)}: no test tries it" for key in known.keys() - _tried.keys()]
    if problems:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        print(f"\n{PAGE.name} is not what the tests found; write it with --write-incidents:")
        print("\n".join(problems))


def _is_complete(session: pytest.Session) -> bool:
    """Whether all incidents were tried; in CI no part of the tests is run alone."""
    return bool(os.environ.get("CI")) and not session.testsfailed


def _key(row: str) -> tuple[str, str]:
    cells = [cell.strip() for cell in row.split("|")]
    return cells[1], cells[2]


def _without_time(row: str) -> str:
    return row.rsplit("|", 2)[0]
