"""``oskit encode``: the token weights of texts, by an encoder or by an exported archive."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from oskit.cli.loader import Loader, loader_options
from oskit.cli.options import output_options, runtime_options
from oskit.cli.output import Output
from oskit.errors import DataError, UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from oskit.archive.backends.runtime import Runtime
    from oskit.archive.text_encoder import TextEncoder

BAR = 40
"""Width of the longest bar, in characters."""


@click.command("encode")
@click.argument("model")
@click.argument("texts", nargs=-1, required=True)
@click.option("--query/--document", "query", default=False, help="Encode as queries.  [documents]")
@click.option("--top", metavar="N", type=click.IntRange(min=1), help="Only the N largest weights of a text.")
@click.option(
    "--key", type=click.Choice(["token", "id"]), default="token", show_default=True, help="Name tokens by."
)
@loader_options
@runtime_options(device=False)
@output_options
def encode(
    model: str,
    texts: tuple[str, ...],
    query: bool,
    top: int | None,
    key: Literal["token", "id"],
    loader: Loader,
    runtime: Runtime,
    out: Output,
) -> None:
    """Print the token weights of texts.

    They are what the cluster would answer: special tokens weigh nothing. MODEL is a folder, a repository on
    the Hugging Face Hub, or an archive that `oskit export` wrote; an archive needs no torch. A text of -
    stands for the lines of standard input.

    \b
    Examples:
      oskit encode ./my-encoder "how do I get a building permit"
      oskit encode out "building permit" --query --json
      cat questions.txt | oskit encode out - --top 10
    """
    from oskit.archive.truncation import truncation_from_now

    lines = _texts(texts)
    encoder = _open(model, loader, runtime, out)
    counted = truncation_from_now(encoder)
    weights = (encoder.query_weights if query else encoder.document_weights)(lines, key=key)
    cut = counted()
    if cut is not None and cut.cut:
        out.warn(cut.told("texts"))
    kept = [dict(list(row.items())[:top]) for row in weights]
    kind = "query" if query else "document"
    data = [{"text": text, "kind": kind, "weights": row} for text, row in zip(lines, kept, strict=True)]
    sizes = [len(row) for row in weights]
    out.result(data, lambda console: _print(console, lines, kept, sizes))


def _texts(texts: Sequence[str]) -> list[str]:
    lines: list[str] = []
    for text in texts:
        if text != "-":
            lines.append(text)
            continue
        try:
            lines += [line.rstrip("\r\n") for line in sys.stdin]
        except UnicodeDecodeError as error:
            raise DataError(
                f"standard input is not UTF-8: {error.reason} at byte {error.start}",
                hint="Convert it first, for instance with iconv.",
            ) from error
    if not lines:
        raise UsageError("there is no text on standard input", hint="Give one text a line.")
    return lines


def _open(model: str, loader: Loader, runtime: Runtime, out: Output) -> TextEncoder:
    from oskit.archive.archive import is_archive
    from oskit.encoder.opening import open_encoder

    if is_archive(Path(model).expanduser()) and (given := loader.given(but=("device",))):
        raise UsageError(
            f"--{given[0]} has no effect on an archive",
            hint="Leave it out, or name the model.",
        )
    return open_encoder(model, runtime, load=loader.load, notify=out.note)


def _print(
    console: Console, texts: Sequence[str], rows: Sequence[Mapping[str, float]], sizes: Sequence[int]
) -> None:
    from rich.markup import escape

    for number, (text, row, size) in enumerate(zip(texts, rows, sizes, strict=True)):
        if number:
            console.print()
        hidden = f", {size - len(row)} more" if size > len(row) else ""
        counted = f"{size} token{'' if size == 1 else 's'}{hidden}"
        console.print(f"[bold]{escape(text) or '(empty)'}[/]  [dim]{counted}[/]", soft_wrap=True)
        _bars(console, row)


def _bars(console: Console, row: Mapping[str, float]) -> None:
    from rich.cells import cell_len

    if not row:
        return
    name_width = max(map(cell_len, row))
    largest = max(row.values())
    room = max(10, min(BAR, console.width - name_width - 12))
    for token, weight in row.items():
        padding = " " * (name_width - cell_len(token))
        # Eighths of a block, so that close weights differ.
        eighths = round(weight / largest * room * 8)
        bar = "█" * (eighths // 8) + ("", *"▏▎▍▌▋▊▉")[eighths % 8]
        console.print(f"  {padding}{token}  {weight:7.4f}  {bar or '▏'}", markup=False, soft_wrap=True)
