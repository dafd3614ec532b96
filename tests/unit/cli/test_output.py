"""What commands print while they work."""

from __future__ import annotations

import pytest

from oskit.cli import output
from oskit.cli.output import Output


class Clock:
    """Time that passes only when it is told."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(output, "time", clock)
    return clock


@pytest.mark.parametrize("json", [False, True])
def test_off_a_terminal_a_line_now_and_then_has_rate_and_time_left(
    clock: Clock, capsys: pytest.CaptureFixture[str], json: bool
):
    with Output(json=json).progress("Loading articles", total=12_000) as handle:
        for _ in range(100):
            clock.now += 1
            handle.advance(32)
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines() == [
        "Loading articles: 960 of 12,000 docs, 32.0 docs/s, 5 min 45 s left",
        "Loading articles: 1,920 of 12,000 docs, 32.0 docs/s, 5 min 15 s left",
        "Loading articles: 2,880 of 12,000 docs, 32.0 docs/s, 4 min 45 s left",
    ]
    with Output(json=json).progress("Loading stdin") as handle:
        clock.now += 40
        handle.advance(100)
    assert capsys.readouterr().err == "Loading stdin: 100 docs\n"


def test_what_a_resumed_run_had_done_before_is_not_its_speed(
    clock: Clock, capsys: pytest.CaptureFixture[str]
):
    with Output().progress("training", 1_000, "steps") as handle:
        handle.update(completed=500)
        clock.now += 50
        handle.update("training: loss 1.0", completed=510, total=1_000)
    assert capsys.readouterr().err == (
        "training: loss 1.0: 510 of 1,000 steps, 0.2 steps/s, 40 min 50 s left\n"
    )


def test_what_has_no_unit_is_a_share_or_a_word(clock: Clock, capsys: pytest.CaptureFixture[str]):
    with Output().progress("Starting", unit="") as handle:
        for done, total in ((0, 80), (20, 80), (7, 0)):
            clock.now += 30
            handle.update("Fetching" if total else "Waiting", completed=done, total=total)
    assert capsys.readouterr().err == "Fetching: 0%\nFetching: 25%\nWaiting\n"


def test_a_quiet_or_quick_command_says_nothing(clock: Clock, capsys: pytest.CaptureFixture[str]):
    for out, seconds in ((Output(quiet=True), 100), (Output(), 1)):
        with out.progress("Loading", total=10) as handle:
            clock.now += seconds
            handle.advance()
    assert capsys.readouterr().err == ""
