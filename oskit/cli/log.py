"""What oskit logs, such as why it waits for a cluster, on the terminal.

A module of its own because `oskit --help` needs no logging.
"""

from __future__ import annotations

import logging

import click


class _Notes(logging.Handler):
    """A line on stderr for each record."""

    def emit(self, record: logging.LogRecord) -> None:
        click.echo(f"Note: {' '.join(record.getMessage().split())}", err=True)


def show_log() -> None:
    """Show what oskit logs; the second call changes nothing."""
    logger = logging.getLogger("oskit")
    if not any(isinstance(handler, _Notes) for handler in logger.handlers):
        # The changes that a command makes are told at its end, in one line.
        logger.addHandler(_Notes(logging.WARNING))
