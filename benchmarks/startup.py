"""How long `oskit --help` takes, beside importing click alone, and `oskit encode` to its first result.

python -m benchmarks.startup [--archive ARCHIVE]
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import click

PAIRS = 15
LIMIT = 3.0
FIRST_RESULT_S = 1.0


def seconds(command: list[str]) -> float:
    """Wall time of one run of ``command``."""
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def processor_seconds(command: list[str]) -> float:
    """Processor time of one run of ``command``, which other programs hardly change."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds(command)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@click.command()
@click.option("--archive", help="Also time the first result of `oskit encode` with this archive.")
def main(archive: str | None) -> None:
    """Time the two in turn, so that a slow moment of the machine hits both."""
    script = str(Path(sys.executable).with_name("oskit"))
    help_command = [script, "--help"]
    click_command = [sys.executable, "-c", "import click"]
    seconds(help_command), seconds(click_command)  # fills the disk cache and writes the byte code
    pairs = [(seconds(help_command), seconds(click_command)) for _ in range(PAIRS)]
    ratio = statistics.median(a / b for a, b in pairs)
    ours, theirs = (statistics.median(column) * 1000 for column in zip(*pairs, strict=True))
    click.echo(f"{'command':<24}{'median':>10}")
    click.echo(f"{'oskit --help':<24}{ours:>7.0f} ms")
    click.echo(f"{'python -c import click':<24}{theirs:>7.0f} ms")
    click.echo(f"{'ratio':<24}{ratio:>10.2f}   (at most {LIMIT:g})")
    if archive is not None:
        encode = [script, "encode", archive, "a text"]
        for clock, unit in ((seconds, "ms"), (processor_seconds, "ms of processor time")):
            first = statistics.median([clock(encode) for _ in range(PAIRS)][1:])
            click.echo(f"{'oskit encode ARCHIVE':<24}{first * 1000:>7.0f} {unit}   ", nl=False)
            click.echo(f"(at most {FIRST_RESULT_S * 1000:.0f} on a machine that does nothing else)")
    if ratio > LIMIT:
        raise click.ClickException(f"oskit --help takes {ratio:.2f} times as long as importing click")


if __name__ == "__main__":
    main()
