"""Options of the loader, shared by the commands that load an encoder with torch."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, TypeVar, get_args

import click

from oskit.archive.text_encoder import Activation
from oskit.cli.options import with_options

if TYPE_CHECKING:
    from oskit.encoder.model import NeuralSparseEncoder

Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class Loader:
    """What the options of the command line ask for."""

    revision: str | None = None
    base: str | None = None
    cache_folder: str | None = None
    local_files_only: bool = False
    device: str | None = None
    activation: Activation | None = None
    max_seq_length: int | None = None
    seed: int = 0
    fallback: bool = True
    trust_remote_code: bool = False
    allowance: str = "without --no-fallback"
    """What allows a random projection, for the hint of the error about one."""

    def given(self, but: Sequence[str] = ()) -> list[str]:
        """Names of the options that are not as they are by default."""
        asked = {part.name: getattr(self, part.name) != part.default for part in fields(self)}
        told = {"max_seq_length": "max-length", "local_files_only": "offline", "fallback": "no-fallback"}
        named = [name for name, is_given in asked.items() if is_given and name not in but]
        return [told.get(name, name.replace("_", "-")) for name in named]

    def load(self, model: str, *, quiet: bool = False) -> NeuralSparseEncoder:
        """Load an encoder; the loader's own warnings go to stderr as they are, unless ``quiet``.

        Raises:
            EncoderError: As ``NeuralSparseEncoder.from_pretrained`` does.
            MissingDependencyError: torch or one of its companions is not installed.
        """
        import oskit
        from oskit.encoder.loader.report import CachedCopyWarning
        from oskit.errors import UntrainedEncoderError

        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                options = {name: value for name, value in vars(self).items() if name != "allowance"}
                if self.base is None:
                    del options["base"]
                encoder = oskit.NeuralSparseEncoder.from_pretrained(model, **options)
            except UntrainedEncoderError as error:
                error.hint = f"Train a projection first, or allow a random one {self.allowance}."
                raise
        told = () if quiet else (oskit.UntrainedProjectionWarning, CachedCopyWarning)
        for warning in caught:
            if issubclass(warning.category, told):
                click.secho(f"{warning.message}\n", err=True, fg="yellow", bold=True)
        return encoder


_OPTIONS = [
    click.option("--revision", metavar="REV", help="Branch, tag or commit of a Hub repository."),
    click.option("--base", metavar="BASE", help="Base encoder, where MODEL is not found."),
    click.option(
        "--no-fallback",
        "fallback",
        flag_value=False,
        default=True,
        help="Fail rather than make up a random projection.",
    ),
    click.option(
        "--activation",
        type=click.Choice(get_args(Activation)),
        help="log1p(relu(x)), or one more log1p as in OpenSearch's v3.  [the encoder's own; relu]",
    ),
    click.option(
        "--max-length",
        "max_seq_length",
        metavar="TOKENS",
        type=int,
        help="Truncate texts to this.  [the encoder's own]",
    ),
    click.option("--seed", type=int, default=0, show_default=True, help="Of a random projection."),
    click.option("--device", metavar="NAME", help="cpu, cuda, cuda:1, mps.  [the best; cpu for export]"),
    click.option("--cache-folder", metavar="DIR", type=click.Path(file_okay=False), help="Cache of the Hub."),
    click.option(
        "--offline",
        "local_files_only",
        is_flag=True,
        help="Never ask the Hub, use its cache.  [HF_HUB_OFFLINE]",
    ),
    click.option(
        "--trust-remote-code", is_flag=True, help="Run Python code that the encoder brings. Read it first."
    ),
]


def loader_options(function: Function) -> Function:
    """Add the loader's options; the command receives ``loader: Loader``."""

    @functools.wraps(function)
    def with_loader(*args: Any, **kwargs: Any) -> Any:
        given = {part.name: kwargs.pop(part.name) for part in fields(Loader) if part.name in kwargs}
        return function(*args, loader=Loader(**given), **kwargs)

    return with_options(with_loader, _OPTIONS)  # type: ignore[no-any-return]
