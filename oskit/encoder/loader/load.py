"""The resilient loader: a local folder, else the Hub, else a base encoder with a random projection.

What is missing leads to the next tier. What is there but broken, or refused, is an error: an encoder that
was trained must never be replaced by one that was not. docs/loading.md has the table.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar, get_args

import torch

from oskit.archive.text_encoder import SERVER_MAX_LENGTH, Activation
from oskit.encoder.anatomy import dissect
from oskit.encoder.head.projection import read_earlier_mark
from oskit.encoder.loader.failures import machine_errors, named_errors, out_of_memory
from oskit.encoder.loader.hub import HubOptions
from oskit.encoder.loader.layouts import Layout, earlier_mark
from oskit.encoder.loader.modules import (
    Trust,
    build_modules,
    check_finite,
    check_weights,
)
from oskit.encoder.loader.quiet import quiet_libraries
from oskit.encoder.loader.report import (
    CachedCopyWarning,
    LoadReport,
    UntrainedProjectionWarning,
    untrained_message,
)
from oskit.encoder.loader.tiers import Found, Search
from oskit.errors import BrokenEncoderError, UntrainedEncoderError, UsageError, first_line

if TYPE_CHECKING:
    from oskit.encoder.model import NeuralSparseEncoder

Encoder = TypeVar("Encoder", bound="NeuralSparseEncoder")

_SAVED_UNTRAINED = "a trained projection (it was saved with a random one)"

SHORTEST = 3
"""Tokens that leave room for a text: the ones around it, and one."""


@dataclass(frozen=True)
class LoadOptions:
    """What a caller may ask for; see ``NeuralSparseEncoder.from_pretrained``.

    Raises:
        UsageError: The activation is unknown, ``max_seq_length`` leaves no room for a text, or torch cannot
            use the device.
    """

    base: str
    hub: HubOptions
    device: str | None
    activation: Activation | None
    max_seq_length: int | None
    seed: int
    fallback: bool

    def __post_init__(self) -> None:
        if self.activation not in (None, *get_args(Activation)):
            raise UsageError(f"unknown activation {self.activation!r}", hint="Use relu or log1p_relu.")
        if self.max_seq_length is not None and self.max_seq_length < SHORTEST:
            raise UsageError(
                f"max_seq_length {self.max_seq_length} leaves no room for a text",
                hint=f"Use {SHORTEST} or more.",
            )
        if self.device is not None:
            _check_device(self.device)

    @property
    def trust(self) -> Trust:
        """Whether the encoder's own code may run."""
        return Trust(self.hub.code, offline=self.hub.local_files_only)


def _check_device(device: str) -> None:
    try:
        torch.empty(1, device=device)
    except Exception as error:  # RuntimeError, AssertionError, ImportError: as many as there are backends
        raise out_of_memory(error, f"anything onto {device}") or UsageError(
            f"torch cannot use the device {device!r}: {first_line(error, 200)}",
            hint="Use cpu, or leave the choice to torch.",
        ) from error


def load(kind: type[Encoder], name: str, options: LoadOptions) -> tuple[Encoder, LoadReport]:
    """Find an encoder, open it, check it, and say how that went.

    Raises:
        EncoderError: As ``NeuralSparseEncoder.from_pretrained`` does.
        MissingDependencyError: The encoder needs a package that is not installed.
        UsageError: An option cannot be right.

    Warns:
        CachedCopyWarning: A copy in the cache is used, because the Hub did not give what was asked for.
        UntrainedProjectionWarning: The projection to the vocabulary is random.
    """
    search = Search(options.hub)
    with quiet_libraries(), _own_random_numbers(options.seed):
        found = search.find(name, options.base if options.fallback else None)
        with machine_errors(found.source):
            encoder, missing = _open(kind, found, options)
            if missing is None and encoder.is_untrained:
                missing = _SAVED_UNTRAINED
            _finish(encoder, found.source, options)
    if missing is not None and not options.fallback:
        raise UntrainedEncoderError(
            f"{found.source} lacks {missing}",
            hint="Train a projection first, or allow a random one with fallback=True.",
        )
    outcome = "head pretrained" if missing is None else f"lacks {missing}: the projection is random"
    report = encoder.describe(
        name=name,
        tier=found.tier,
        source=found.source,
        folder=str(found.layout.folder),
        revision=found.revision,
        layout=found.layout.kind,
        attempts=search.loaded(found, outcome),
    )
    # The third frame is the caller of from_pretrained.
    if found.warning is not None:
        warnings.warn(found.warning, CachedCopyWarning, stacklevel=3)
    if missing is not None:
        warnings.warn(untrained_message(report, missing), UntrainedProjectionWarning, stacklevel=3)
    return encoder, report


@contextmanager
def _own_random_numbers(seed: int) -> Iterator[None]:
    """Make up weights that do not matter (a pooler that a checkpoint lacks): on the CPU, the same for a seed.

    The caller's random numbers go on as if nothing had been loaded, on every device. ``torch.manual_seed``
    would reseed those of CUDA, also where CUDA has not started.
    """
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        yield


def _open(kind: type[Encoder], found: Found, options: LoadOptions) -> tuple[Encoder, str | None]:
    """The encoder in a folder, and what it lacks if its projection is random."""
    layout = found.layout
    untrained = found.tier == "base"
    if layout.kind == "sentence-transformers" and not untrained:
        return _open_saved(kind, layout, options), None
    modules, missing = build_modules(
        layout,
        activation=options.activation or "relu",
        seed=options.seed,
        trust=options.trust,
        untrained=untrained,
    )
    encoder = kind(modules=modules, device=options.device, similarity_fn_name="dot", local_files_only=True)
    return encoder, missing


def _open_saved(kind: type[Encoder], layout: Layout, options: LoadOptions) -> Encoder:
    """What sentence-transformers saved, opened by sentence-transformers."""
    for part in layout.transformers:
        lacking = check_weights(part, options.trust)
        if lacking.head:
            raise BrokenEncoderError(
                f"{part.folder} lacks weights of its head: {', '.join(lacking.head[:3])}",
                hint="Copy or download the encoder again.",
            )
    with named_errors(layout.folder):
        encoder = kind(
            str(layout.folder),
            device=options.device,
            model_kwargs={"dtype": torch.float32},
            **options.trust.options(),
        )
    if mark := earlier_mark(layout.folder):
        anatomy = dissect(encoder, str(layout.folder))
        if anatomy.projection is not None:
            read_earlier_mark(anatomy.projection, anatomy.config, mark)
    return encoder


def _finish(encoder: NeuralSparseEncoder, source: str, options: LoadOptions) -> None:
    """Apply the caller's wishes and refuse now what could not work later."""
    anatomy = dissect(encoder, source)
    check_finite(encoder, source)
    if options.activation is not None:
        anatomy.pooling.activation_function = options.activation
    limit, own = anatomy.positions, anatomy.transformer.max_seq_length
    length = options.max_seq_length or own
    if options.max_seq_length is not None and limit is not None and options.max_seq_length > limit:
        raise UsageError(
            f"max_seq_length {options.max_seq_length} is more than the {limit} positions of {source}",
            hint=f"Use {limit} or less.",
        )
    if length is not None and limit is not None:
        length = min(length, limit)
    if length is not None and length < SHORTEST:
        raise BrokenEncoderError(
            f"{source} reads {length} tokens of a text, which leaves no room for one",
            hint="Correct max_seq_length in its files, or give another: max_seq_length=.",
        )
    known = [one for one in (own, limit, SERVER_MAX_LENGTH) if one is not None]
    encoder.own_max_length = min(known)
    if length is not None and length != own:
        encoder.max_seq_length = length
    # Made once here, so that a tokenizer or a table of another encoder is refused now.
    assert encoder.vocabulary.size
    encoder.query_idf()
    encoder.eval()
