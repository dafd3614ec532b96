"""What training brings: python -m benchmarks.quality --data DIR."""

from __future__ import annotations

import json
import time
from pathlib import Path

import click

from benchmarks.quality.data import On, Workspace
from benchmarks.quality.rows import ROWS, Row
from benchmarks.quality.runs import BM25, DENSE, Result, Runner
from benchmarks.quality.tables import markdown, to_json
from benchmarks.quality.variants import SCALES
from oskit.demo.run import describe_machine
from oskit.errors import OskitError


@click.command()
@click.option(
    "--data",
    required=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder with collections.tar.xz and medquad-pairs.jsonl.xz.",
)
@click.option(
    "--work",
    default="quality-output",
    show_default=True,
    type=click.Path(path_type=Path),
    help="Folder for runs, results and the table; results that are there are not made again.",
)
@click.option("--rows", default=",".join(ROWS), show_default=True, help="Which rows.")
@click.option("--seeds", default=3, show_default=True, type=click.IntRange(1), help="How many, from 0.")
@click.option("--scale", default="cpu", show_default=True, type=click.Choice(list(SCALES)))
@click.option("--on", default="test", show_default=True, type=click.Choice(["test", "dev"]),
              help="dev: the development sets, on which alone recipes are chosen.")  # fmt: skip
def main(data: Path, work: Path, rows: str, seeds: int, scale: str, on: On) -> None:
    """Train and measure encoders, and print one table with a verdict on each claim.

    Every figure is measured by this command on queries that no training saw. It goes on where it was
    interrupted. Writes quality-test.md and quality-test.json into the working folder.
    """
    chosen = {number.strip(): _row(number.strip()) for number in rows.split(",")}
    size = SCALES[scale]
    start = time.perf_counter()

    def tell(line: str) -> None:
        click.echo(f"[{time.perf_counter() - start:6.0f} s] {line}", err=True)

    workspace = Workspace(data.resolve(), work.resolve(), on, size.corpus, size.pairs, size.queries)
    runner = Runner(workspace, size, tell)
    try:
        results = _results(runner, chosen, seeds)
    except OskitError as error:
        raise click.ClickException(str(error)) from error
    claims = {number: row.claims(results) for number, row in chosen.items()}
    facts = {
        "scale": scale,
        "on": on,
        "seeds": seeds,
        "seconds": time.perf_counter() - start,
        "machine": describe_machine(),
    }
    table = markdown(chosen, results, claims)
    report = json.dumps(to_json(results, claims, facts), indent=1)
    (work / f"quality-{on}.md").write_text(table, encoding="utf-8")
    (work / f"quality-{on}.json").write_text(report, encoding="utf-8")
    click.echo(table)


def _row(number: str) -> Row:
    if number not in ROWS:
        known = ", ".join(ROWS)
        raise click.BadParameter(f"there is no row {number}; there are {known}", param_hint="--rows")
    return ROWS[number]


def _results(runner: Runner, rows: dict[str, Row], seeds: int) -> dict[str, list[Result]]:
    """Seed by seed, so that an interrupted benchmark has all rows with fewer seeds."""
    results: dict[str, list[Result]] = {}
    for name in (BM25, DENSE):
        asking = [row for row in rows.values() if name in row.references]
        wanted = {collection for row in asking for collection in runner.measured_on(row.collections)}
        results[name] = [runner.reference(name, collection) for collection in sorted(wanted)]
    for seed in range(seeds):
        for name in dict.fromkeys(name for row in rows.values() for name in row.variants):
            result = runner.result(name, seed)
            found = results.setdefault(name, [])
            if result not in found:  # one that no seed changes comes once
                found.append(result)
    return results


if __name__ == "__main__":
    main()
