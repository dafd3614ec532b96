"""The encoder as it was stays in the one that is saved: a share of its weights in the average of both.

WiSE-FT (Wortsman et al. 2022, arXiv 2109.01903): on a straight line between the weights before and after
fine-tuning an encoder keeps most of both, what it learned and what it could do on other texts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from oskit.encoder.model import NeuralSparseEncoder


class Average:
    """Weights of an encoder as it is now, to be averaged with those that it will have.

    Args:
        encoder: Before training.
        share: Of the weights as they are now, from 0 to 1; 0 changes nothing and keeps no copy.
    """

    def __init__(self, encoder: NeuralSparseEncoder, share: float) -> None:
        self._share = share
        named = encoder.named_parameters() if share else ()
        self._start = {name: parameter.detach().clone() for name, parameter in named}

    @torch.no_grad()
    def apply(self, encoder: NeuralSparseEncoder) -> None:
        """Change the encoder to the average; weights that are tied count once."""
        for name, parameter in encoder.named_parameters():
            if name in self._start:
                parameter.lerp_(self._start[name].to(parameter), self._share)

    @contextmanager
    def applied(self, encoder: NeuralSparseEncoder) -> Iterator[None]:
        """The average for as long as the block lasts."""
        names = self._start.keys()
        own = {name: value.detach().clone() for name, value in encoder.named_parameters() if name in names}
        self.apply(encoder)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, parameter in encoder.named_parameters():
                    if name in own:
                        parameter.copy_(own[name])
