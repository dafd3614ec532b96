"""The ``teachers`` part of a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import (
    ConfigDict,
    Field,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from oskit.errors import UsageError
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
        if not any(teacher.weight for teacher in (self.dense, self.sparse, self.cross_encoder)):
            raise ValueError("all teachers have the weight 0: give at least one a weight")
        return self


_LEGACY_KEYS = (
    *("enabled", "dense_teacher", "sparse_teacher", "cross_encoder", "teacher_weights", "score_scale"),
    *("temperature", "use_normalization"),
)


def teachers_from_legacy(config: Mapping[str, Any]) -> TeachersConfig | None:
    """The teachers of a ``CONFIG``-like dictionary, as notebooks have it.

    ::

        CONFIG = {
            "knowledge_distillation": {
                "enabled": True,
                "dense_teacher": "a model, or None",
                "sparse_teacher": "outputs/sparse_teacher_v1, or None",
                "teacher_weights": {"dense": 0.5, "sparse": 0.5},
            },
        }

    A teacher that is None has the weight 0, whatever ``teacher_weights`` says. Without ``teacher_weights``
    the sparse teacher is not used, and a ``cross_encoder`` only with a weight of its own there.
    ``use_normalization: False`` takes scores as they are. ``temperature`` belongs to the loss.

    Args:
        config: The whole dictionary.

    Returns:
        The teachers; None where there is no ``knowledge_distillation`` or it is not enabled.

    Raises:
        UsageError: A key is unknown, or a value cannot be right.
    """
    section = config.get("knowledge_distillation")
    if section is None or section is False:
        return None
    if not isinstance(section, Mapping):
        raise UsageError("CONFIG['knowledge_distillation'] is not a dictionary", hint=_LEGACY_HINT)
    if unknown := sorted(set(section) - set(_LEGACY_KEYS)):
        raise UsageError(
            f"CONFIG['knowledge_distillation'] has the unknown key {unknown[0]!r}", hint=_LEGACY_HINT
        )
    if not section.get("enabled", True):
        return None
    weights = section.get("teacher_weights") or {"dense": 1.0, "sparse": 0.0}
    if not isinstance(weights, Mapping) or set(weights) - {"dense", "sparse", "cross_encoder"}:
        raise UsageError(
            "CONFIG['knowledge_distillation']['teacher_weights'] is not {'dense': ..., 'sparse': ...}",
            hint="For example {'dense': 0.5, 'sparse': 0.5}.",
        )
    dense, sparse = section.get("dense_teacher", DEFAULT_DENSE_TEACHER), section.get("sparse_teacher")
    cross = section.get("cross_encoder")
    values: dict[str, Any] = {
        "dense": {"name": dense, "weight": weights.get("dense", 1.0) if dense else 0.0},
        "sparse": {"name": sparse, "weight": weights.get("sparse", 0.0) if sparse else 0.0},
        "cross_encoder": {"name": cross, "weight": weights.get("cross_encoder", 0.0) if cross else 0.0},
    }
    if section.get("use_normalization") is False:
        values["normalize"] = "none"
    if "score_scale" in section:
        values["scale"] = section["score_scale"]
    try:
        return TeachersConfig.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UsageError(
            f"CONFIG['knowledge_distillation']{f' ({where})' if where else ''}: {first['msg']}",
            hint=_LEGACY_HINT,
        ) from error


_LEGACY_HINT = f"Its keys are {', '.join(_LEGACY_KEYS)}."
