"""The command line. ``main`` is the entry point of the ``oskit`` script."""

from oskit.cli.main import cli, main

__all__ = ["cli", "main"]
