"""What `oskit ingest` tells of a load, as JSON and in a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from oskit.cluster.ingest.load import IngestReport


def load_told(report: IngestReport, options: dict[str, Any]) -> dict[str, Any]:
    """The report for JSON, with the part that was loaded."""
    part = options["part"]
    return report.to_dict() | {
        "part": None if part is None else str(part),
        "in_other_parts": None if part is None else part.elsewhere,
    }


def print_load(console: Console, report: IngestReport, options: dict[str, Any], *, dry: bool) -> None:
    """What became of the records; with ``dry``, what would."""
    if dry:
        console.print(f"{report.indexed:,} of {report.read:,} records can be loaded into {report.index}",
                      markup=False)  # fmt: skip
    else:
        rate = f"{report.seconds:.1f} s, {report.docs_per_second:,.1f} docs/s"
        if report.encoder_busy is not None:
            rate += f", encoder busy {report.encoder_busy:.0%} of the time"
        console.print(f"Indexed {report.indexed:,} of {report.read:,} records into {report.index} ({rate})",
                      markup=False)  # fmt: skip
        counts = (("unchanged", report.unchanged), ("encoded", report.encoded), ("deleted", report.deleted))
        told = ", ".join(f"{what} {count:,}" for what, count in counts)
        console.print(f"  {told}", markup=False)
    if (part := options["part"]) is not None:
        console.print(f"  this is part {part}: {part.elsewhere:,} records are in the others", markup=False)
    if report.chunks is not None:
        console.print(f"  cut into {report.chunks:,} chunks ({options['chunk']})", markup=False)
    elif options["encode"] != "none":
        _print_truncation(console, report, "--archive DIR" if dry else "--encode cluster --archive DIR")
    if report.duplicates:
        console.print(f"  {report.told_duplicates}", markup=False, soft_wrap=True)
    if report.retries:
        console.print(f"  {report.retries:,} were sent again, the cluster was busy", markup=False)
    if report.refused:
        where = f", kept in {report.dead_letter}" if report.dead_letter else ""
        console.print(f"  {report.refused:,} were refused{where}", markup=False)
        for reason, count in report.reasons.items():
            console.print(f"    {count:,} times: {reason}", markup=False, soft_wrap=True)


def _print_truncation(console: Console, report: IngestReport, how: str) -> None:
    cut = report.truncation
    if cut is None and report.encoded:
        console.print(f"  documents too long for the encoder were not counted: {how} does", markup=False)
    elif cut is not None and cut.cut:
        chunks = f"--chunk tokens:{cut.max_length},overlap:{cut.max_length // 8}"
        told = f"  {cut.told('documents')}; {chunks} cuts them into passages that are encoded whole"
        console.print(told, markup=False, soft_wrap=True)
