"""Write docs/cli.md from the commands' own help, so that the two cannot differ (a test compares them)."""

from __future__ import annotations

from pathlib import Path

import click

from oskit.cli import cli

TARGET = Path(__file__).with_name("cli.md")
WIDTH = 100


def reference() -> str:
    """The whole reference as Markdown."""
    parts = ["# Command-line reference\n\nWritten by `make docs` from the commands' own help.\n"]
    parts += [_section(path, command) for path, command in _walk(cli, ("oskit",))]
    return "\n".join(parts)


def _walk(command: click.Command, path: tuple[str, ...]) -> list[tuple[tuple[str, ...], click.Command]]:
    found = [(path, command)]
    if isinstance(command, click.Group):
        context = click.Context(command, info_name=path[-1])
        for name in command.list_commands(context):
            child = command.get_command(context, name)
            assert child is not None
            found += _walk(child, (*path, name))
    return found


def _section(path: tuple[str, ...], command: click.Command) -> str:
    context: click.Context | None = None
    for name in path[:-1]:
        context = click.Context(click.Command(name), info_name=name, parent=context)
    own = click.Context(
        command,
        info_name=path[-1],
        parent=context,
        terminal_width=WIDTH,
        max_content_width=WIDTH,
        help_option_names=["-h", "--help"],
    )
    return f"## `{' '.join(path)}`\n\n```text\n{command.get_help(own)}\n```\n"


if __name__ == "__main__":
    TARGET.write_text(reference(), encoding="utf-8")
