"""The ``teachers`` part of a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import (
    ConfigDict,
    Field,
    PositiveInt,
    field_validator,
    model_validator,
)

from oskit.training.recipe.part import Part

Normalization = Literal["minmax", "none"]
Precision = Literal["float32", "float16", "bfloat16"]

DEFAULT_DENSE_TEACHER = "sentence-transformers/all-MiniLM-L6-v2"

PUBLISHED_SCALE = 30.0
"""``score_scale`` of the published training (:class:`oskit.training.teachers.ensemble.EnsembleTeacher`)."""


class TeacherConfig(Part):
    """What all teachers have in common."""

    model_config = ConfigDict(validate_default=True)

    name: str | None = None
    """A folder, or a repository on the Hugging Face Hub."""
    weight: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Its share in the average of the scores; 0 leaves it unused, it is not even loaded."""
    required: bool = False
    """Whether training ends if it fails; else it is dropped, loudly."""
    revision: str | None = None
    """Branch, tag or commit on the Hub."""
    max_length: PositiveInt | None = None
    """Tokens that it reads of a text; None for its own limit."""
    batch_size: PositiveInt = 32
    """Texts that it computes at once; halved where memory does not suffice."""
    device: str | None = None
    """Where torch puts it; None takes the best there is."""
    precision: Precision = "float32"
    """Of its weights."""
    trust_remote_code: bool = False
    """Run Python code that the model brings. Read it first."""

    @field_validator("name", mode="before")
    @classmethod
    def _path_as_text(cls, value: Any) -> Any:
        return str(value) if isinstance(value, Path) else value

    @model_validator(mode="after")
    def _named_and_weighed(self) -> Self:
        if self.weight > 0 and not self.name:
            raise ValueError("a teacher with a weight needs a name: a folder or a repository on the Hub")
        if self.name and "weight" not in self.model_fields_set and not self.weight:
            raise ValueError(f"the teacher {self.name!r} needs a weight (0 leaves it unused), such as 0.5")
        return self


class DenseTeacherConfig(TeacherConfig):
    """A sentence-transformers model."""

    name: str | None = DEFAULT_DENSE_TEACHER
    """A folder, or a repository on the Hugging Face Hub."""
    weight: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    """Its share in the average of the scores; 0 leaves it unused, it is not even loaded."""
    query_prompt: str | None = None
    """Put before each query, such as ``"query: "``; None for the model's own prompt."""
    document_prompt: str | None = None
    """The same for documents, such as ``"passage: "``."""


class SparseTeacherConfig(TeacherConfig):
    """A trained neural sparse encoder, such as the result of a first stage."""


class CrossEncoderConfig(TeacherConfig):
    """A sentence-transformers ``CrossEncoder``."""


class TeachersConfig(Part):
    """Who labels the examples, and how the scores become labels. The dense teacher alone is the default."""

    dense: DenseTeacherConfig = DenseTeacherConfig()
    """The dense teacher."""
    sparse: SparseTeacherConfig = SparseTeacherConfig()
    """The sparse teacher."""
    cross_encoder: CrossEncoderConfig = CrossEncoderConfig()
    """The cross-encoder."""
    scale: float = Field(default=PUBLISHED_SCALE, gt=0, allow_inf_nan=False)
    """What normalised scores are multiplied by: the sharpness of the distribution to be learned."""
    normalize: Normalization = "minmax"
    """``minmax``: each teacher's scores of a query's candidates become [0, 1] before they are averaged.
    ``none``: scores as they are, only sensible for teachers of one kind."""
    cache_folder: Path | None = None
    """Where scores are kept; None for ``OSKIT_CACHE_DIR`` or the user's cache folder."""

    @model_validator(mode="after")
    def _some_weight(self) -> Self:
        if not self.used:
            raise ValueError("all teachers have the weight 0: give at least one a weight")
        return self

    @property
    def used(self) -> dict[str, TeacherConfig]:
        """The teachers that have a weight, by their kind."""
        every = {"dense": self.dense, "sparse": self.sparse, "cross-encoder": self.cross_encoder}
        return {kind: teacher for kind, teacher in every.items() if teacher.weight > 0}
