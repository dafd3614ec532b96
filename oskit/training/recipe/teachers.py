"""The ``teachers`` and ``labels`` of a recipe: who labels the examples, and how scores become labels."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, PositiveInt

from oskit.errors import UsageError
from oskit.training.recipe.part import Kind, Part

Normalization = Literal["minmax", "none"]
Precision = Literal["auto", "float32", "float16", "bfloat16"]

DEFAULT_DENSE_TEACHER = "sentence-transformers/all-MiniLM-L6-v2"

PUBLISHED_SCALE = 30.0
"""``score_scale`` of the published training (:class:`oskit.training.teachers.ensemble.EnsembleTeacher`)."""

Name = Annotated[str, BeforeValidator(lambda value: str(value) if isinstance(value, Path) else value)]


class TeacherConfig(Kind):
    """What all teachers have in common."""

    weight: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    """Its share in the average of the scores, beside the other teachers'. One of weight 0 labels nothing; a
    dense one can mine all the same."""
    normalize: Normalization | None = None
    """As ``labels.normalize``, of this teacher; None for what that says."""
    required: bool = False
    """Whether training ends if it cannot be had; else it is dropped before the first label, loudly."""

    @property
    def label(self) -> str:
        """How messages call it."""
        return f"the {self.kind} teacher"


class ReadingTeacherConfig(TeacherConfig):
    """A teacher that reads queries and documents."""

    texts: Path | None = None
    """A JSONL file of ``{"text": ..., "read": ...}``: the teacher reads ``read`` where an example has
    ``text``, such as the same text in the language that it knows best. Texts that the file lacks are read as
    they are, and counted."""


class ModelTeacherConfig(ReadingTeacherConfig):
    """A teacher that is a model."""

    name: Name
    """A folder, or a repository on the Hugging Face Hub."""
    revision: str | None = None
    """Branch, tag or commit on the Hub."""
    max_length: PositiveInt | None = None
    """Tokens that it reads of a text; None for its own limit."""
    device: str | None = None
    """Where torch puts it; None takes the best there is."""
    precision: Precision = "auto"
    """Of its weights; ``auto`` is float32, computed in bf16 on a GPU that has it."""
    trust_remote_code: bool = False
    """Run Python code that the model brings. Read it first."""

    @property
    def label(self) -> str:
        return f"the {self.kind} teacher {self.name}"


class DenseTeacherConfig(ModelTeacherConfig):
    """Cosines, or whatever similarity it says, of a sentence-transformers model."""

    kind: Literal["dense"] = "dense"
    name: Name = DEFAULT_DENSE_TEACHER
    """A folder, or a repository on the Hugging Face Hub."""
    query_prompt: str | None = None
    """Put before each query, such as ``"query: "``; None for the model's own prompt."""
    document_prompt: str | None = None
    """The same for documents, such as ``"passage: "``."""


class SparseTeacherConfig(ModelTeacherConfig):
    """Inner products of a trained neural sparse encoder, such as the result of a first stage."""

    kind: Literal["sparse"] = "sparse"


class CrossEncoderConfig(ModelTeacherConfig):
    """Scores of a sentence-transformers ``CrossEncoder``, which reads query and document together."""

    kind: Literal["cross-encoder"] = "cross-encoder"


def _known_language(language: str | None) -> str | None:
    if language not in (None, "auto"):
        from oskit.evaluation.offline.bm25 import Bm25Settings

        try:
            Bm25Settings(language=language)
        except UsageError as error:
            raise ValueError(str(error)) from error
    return language


class Bm25TeacherConfig(ReadingTeacherConfig):
    """BM25 over the training corpus: knows words, whatever the models have never read."""

    kind: Literal["bm25"] = "bm25"
    language: Annotated[str | None, AfterValidator(_known_language)] = "auto"
    """Stop words and stemmer: ``english``, ``swedish``, …, ``cjk``; ``auto`` guesses, None has neither."""
    max_length: PositiveInt | None = None
    """Words that count of a text, from its beginning and without stop words; None for all. Words that the
    encoder does not read teach it nothing."""


class ItselfTeacherConfig(ReadingTeacherConfig):
    """The encoder that is trained, as it was before: keeps what it knows."""

    kind: Literal["itself"] = "itself"
    max_length: PositiveInt | None = None
    """Tokens that it reads of a text; None for its own limit, whatever training cuts texts to."""


class StoredTeacherConfig(TeacherConfig):
    """The scores that the data has, of a query's own candidates."""

    kind: Literal["stored"] = "stored"


AnyTeacher = Annotated[
    DenseTeacherConfig
    | SparseTeacherConfig
    | CrossEncoderConfig
    | Bm25TeacherConfig
    | ItselfTeacherConfig
    | StoredTeacherConfig,
    Field(discriminator="kind"),
]

Teachers = tuple[AnyTeacher, ...]


class LabelsPart(Part):
    """How the teachers' scores become labels."""

    normalize: Normalization = "minmax"
    """``minmax``: each teacher's scores of a query's candidates become [0, 1] before they are averaged.
    ``none``: scores as they are, only sensible for teachers of one kind."""
    scale: float = Field(default=PUBLISHED_SCALE, gt=0, allow_inf_nan=False)
    """What averaged scores are multiplied by: the sharpness of the distribution to be learned."""
    cache_folder: Path | None = None
    """Where scores are kept; None for ``OSKIT_CACHE_DIR`` or the user's cache folder."""
