"""``manifest.json``: where an archive comes from, how it was proved, and what it must predict."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from oskit.archive.text_encoder import Activation, Architecture, KeyFormat, Pooling
from oskit.errors import ArchiveError

MANIFEST_NAME = "manifest.json"


class _Record(BaseModel):
    # Fields of a later oskit are ignored, so that its archives still open here.
    model_config = ConfigDict(extra="ignore", frozen=True)


class Source(_Record):
    """Where the encoder was loaded from."""

    model: str
    """Folder or Hub repository, as it was asked for."""
    revision: str | None = None
    """Commit of the Hub repository."""
    tier: str | None = None
    """``local``, ``hub`` or ``base``."""
    head: str | None = None
    """How the graph projects to the vocabulary, ``exact-int8`` in int8 and then in fp32; None: plainly."""
    model_type: str | None = None
    """Backbone, for instance ``bert``."""


MEANINGLESS = "the tokens are names of directions, of a dense model made sparse: they mean nothing"
"""What is told where tokens are shown that :attr:`VocabularyRecord.directions` speaks of."""


class VocabularyRecord(_Record):
    """Size of the output, and the key that is safe for it."""

    size: int
    key_format: KeyFormat
    directions: bool = False
    """Whether tokens are names of directions, of a dense model made sparse, and mean nothing."""


class Retrieval(_Record):
    """What quantising does to a ranking: the archive beside the encoder, on a sample of texts."""

    source: str
    """What the texts are."""
    judged: bool
    """Whether somebody judged the relevance; else a query is a sentence of its document."""
    documents: int
    queries: int
    ndcg: float
    """nDCG@10 of the encoder."""
    quantized_ndcg: float
    """nDCG@10 of the archive."""
    overlap: float
    """Share of the top 10 that both have, the mean of all queries."""
    max_loss: float
    """What nDCG@10 was allowed to lose."""
    min_overlap: float
    """What ``overlap`` had to be at least."""

    @property
    def holds(self) -> bool:
        """Whether it is within what was allowed."""
        return self.ndcg - self.quantized_ndcg <= self.max_loss + 1e-9 and self.overlap >= self.min_overlap

    def told(self) -> str:
        """The figures, for people."""
        return (
            f"nDCG@10 is {self.quantized_ndcg:.3f} instead of {self.ndcg:.3f} (may lose {self.max_loss:g}) "
            f"and {self.overlap:.0%} of the top 10 stay (at least {self.min_overlap:.0%}), for "
            f"{self.queries} queries on {self.documents} documents of {self.source}"
        )


class Parity(_Record):
    """The archive, opened again and run, beside the encoder."""

    texts: int
    max_difference: float
    """Largest difference of a weight, relative above 1; pruning may keep or cut one at the edge."""
    mean_cosine: float
    """Cosine of the two vectors of a text, the mean of all texts."""
    min_cosine: float
    """The worst of all texts."""
    tolerance: float | None = None
    """What ``max_difference`` was allowed to be; None for a quantised archive, see ``retrieval``."""
    retrieval: Retrieval | None = None
    """What a quantised archive had to keep."""
    runtime: str
    """What ran the archive, for instance ``onnxruntime 1.22.0``."""


class Probe(_Record):
    """A text and the weights that a deployed model must give for it."""

    text: str
    weights: dict[str, float]
    """The heaviest, keyed in the manifest's ``key_format``."""


class Manifest(_Record):
    """What ``oskit export`` knows about an archive."""

    manifest_version: Literal[1] = 1
    file: str
    sha256: str
    name: str
    version: str
    description: str
    kind: Literal["encoder", "tokenizer"]
    model_format: Literal["TORCH_SCRIPT", "ONNX"]
    architecture: Architecture
    source: Source
    activation: Activation
    pooling: Pooling = "max"
    max_length: int
    """Tokens a text is truncated to, special tokens included."""
    prune: str | None = None
    """Pruning baked into the graph, as ``TYPE:RATIO``."""
    quantization: str | None = None
    head: str | None = None
    """How the graph projects to the vocabulary, ``exact-int8`` in int8 and then in fp32; None: plainly."""
    vocabulary: VocabularyRecord
    versions: dict[str, str] = Field(default_factory=dict)
    """Of oskit and of the packages that made the archive."""
    parity: Parity
    probes: tuple[Probe, ...] = ()
    notes: tuple[str, ...] = ()
    """What someone who uses the archive should know, one line each."""
    query_archive: str | None = None
    """The tokenizer archive that goes with an inference-free encoder, relative to this manifest's folder."""

    @property
    def key_format(self) -> KeyFormat:
        """The safe key for an index of this encoder."""
        return self.vocabulary.key_format

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Read ``manifest.json``.

        Raises:
            ArchiveError: It cannot be read, or is not a manifest.
        """
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise ArchiveError(f"{path} cannot be read: {error.strerror}") from error
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "the file"
            raise ArchiveError(
                f"{path} is not an archive's manifest: {where}: {first['msg']}",
                hint="Export the encoder again with `oskit export`, or move the zip to a folder of its own.",
            ) from error

    def to_json(self) -> str:
        """The content of ``manifest.json``."""
        return self.model_dump_json(indent=2, exclude_none=True) + "\n"


def short_name(model: str) -> str:
    """What people call an encoder: its repository, or the name of its folder.

    Every training run has a folder ``best``, and many an encoder lies in one called ``model``: these are
    called by the folder around them.
    """
    if not Path(model).exists():
        return model
    folder = Path(model).resolve()
    around = folder.parent.name if folder.name in ("best", "model") else ""
    return around or folder.name


def origin(path: Path) -> tuple[str | None, str | None]:
    """Encoder and architecture that a manifest of any version names; None for what it does not tell."""
    try:
        content = json.loads(path.read_bytes())
        return str(content["source"]["model"]), str(content["architecture"])
    except (OSError, ValueError, KeyError, TypeError):
        return None, None
