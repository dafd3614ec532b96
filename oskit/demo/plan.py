"""What the demo makes: every format, kind of index, encode mode and architecture, in few indexes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from oskit.cluster.index.mapping import EncodeMode, IndexKind

Format = Literal["onnx", "torchscript"]
FORMATS: tuple[Format, ...] = ("onnx", "torchscript")

APPROXIMATE_THRESHOLD = 100
"""Documents from which the demo's approximate index is searched approximately."""


@dataclass(frozen=True)
class IndexPlan:
    """One index to make and to prove.

    Attributes:
        model_format: Of the archive whose model encodes.
        inference_free: Queries by the tokenizer model instead of the encoder.
        approximate: Lower the threshold, so that the search is approximate.
    """

    label: str
    model_format: Format
    kind: IndexKind
    encode: EncodeMode
    inference_free: bool = False
    approximate: bool = False

    @property
    def index(self) -> str:
        """Name of the index."""
        return f"oskit-demo-{self.label.replace(' ', '-').replace('_', '-')}"


def plans(formats: Sequence[Format]) -> list[IndexPlan]:
    """The indexes of the demo. Documents are encoded here with the first format, there with both."""
    first, last = formats[0], formats[-1]
    return [
        IndexPlan(f"{first} rank_features client", first, "rank_features", "client"),
        IndexPlan(f"{last} rank_features cluster", last, "rank_features", "cluster"),
        IndexPlan(f"{first} sparse_vector cluster", first, "sparse_vector", "cluster"),
        IndexPlan(f"{first} sparse_vector approximate", first, "sparse_vector", "client", approximate=True),
        IndexPlan(f"{first} inference-free client", first, "rank_features", "client", inference_free=True),
    ]
