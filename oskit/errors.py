"""Every error oskit raises on purpose, in one tree.

::

    OskitError
    ├── UsageError                  an option or argument that cannot be right
    ├── DataError                   an input file or record that cannot be read
    ├── MissingDependencyError      an optional dependency is not installed
    ├── EncoderError
    │   ├── EncoderNotFoundError    no tier of the loader had the encoder
    │   ├── BrokenEncoderError      it is there, but truncated, misshapen or incomplete
    │   ├── HubAccessError          the Hub wants a login, or access to a gated repository
    │   └── UntrainedEncoderError   a random projection where a trained one is needed
    ├── ArchiveError                a file that is not a usable ML Commons archive
    ├── ExportError
    │   └── ParityError             the exported graph does not compute what the encoder does
    ├── ClusterError
    │   ├── ClusterConnectionError  unreachable, TLS, time-out
    │   ├── ClusterAuthError        401 or 403
    │   ├── ClusterSettingsError    a cluster setting or breaker stands in the way
    │   ├── ModelError              registering, uploading, deploying or finding a model
    │   │   └── PredictionMismatchError   the cluster predicts something else than the archive
    │   ├── IndexingError           creating an index or loading documents into it
    │   └── SearchError             a query the cluster refused
    ├── VerificationError           the cluster's retrieval disagrees with the exact scores
    ├── TrainingError               training cannot start, or cannot go on
    │   └── TrainingInterrupted     it was stopped by the user and can go on later
    └── NodeError                   the local OpenSearch (process or container)

An error is one line: what happened and where; ``hint`` says what to do next.
The command line prints ``str(error)`` and exits with ``error.exit_code``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar


class OskitError(Exception):
    """Base of all errors that oskit raises on purpose.

    Args:
        message: One line: what happened and where.
        hint: One line: what to do about it.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        self.message = " ".join(message.split())
        self.hint = " ".join(hint.split()) if hint else None
        super().__init__(self.message)

    def __str__(self) -> str:
        if not self.hint:
            return self.message
        separator = " " if self.message.endswith((".", "!", "?")) else ". "
        return f"{self.message}{separator}{self.hint}"


def with_more(hint: str | None, more: str) -> str:
    """A hint with another sentence behind it."""
    return f"{hint.rstrip('.')}. {more}" if hint else more


class UsageError(OskitError):
    """An option, an argument or a combination of them that cannot be right."""

    exit_code = 2


class DataError(OskitError):
    """An input file or record that cannot be read; names the file and the line."""

    exit_code = 3


class MissingDependencyError(OskitError):
    """An optional dependency is not installed; the hint names the extra that brings it."""

    exit_code = 4

    @classmethod
    def for_extra(cls, purpose: str, package: str | Sequence[str], extra: str) -> MissingDependencyError:
        """The usual wording: ``purpose`` needs a package, or several, which ``oskit[extra]`` brings."""
        one = package if isinstance(package, str) else package[0] if len(package) == 1 else None
        return cls(
            f"{purpose} needs the package {one!r}, which is not installed"
            if one
            else f"{purpose} needs packages that are not installed: {', '.join(package)}",
            hint=f"Install it with: pip install 'oskit[{extra}]'",
        )


class EncoderError(OskitError):
    """An encoder cannot be loaded or used."""

    exit_code = 5


class EncoderNotFoundError(EncoderError):
    """No tier of the loader had the encoder and no fallback was allowed or possible."""


class BrokenEncoderError(EncoderError):
    """The encoder's files are there, but truncated, misshapen or incomplete."""


class HubAccessError(EncoderError):
    """The Hugging Face Hub refused access (login needed, gated repository, bad token)."""


class UntrainedEncoderError(EncoderError):
    """A randomly initialised projection was offered where a trained encoder is needed."""


class ArchiveError(OskitError):
    """A file is not a usable (or not a safe) ML Commons archive."""

    exit_code = 6


class ExportError(OskitError):
    """An encoder cannot be exported."""

    exit_code = 6


class ParityError(ExportError):
    """The exported graph does not compute what the encoder computes."""

    exit_code = 9


class ClusterError(OskitError):
    """The cluster refused or failed a request."""

    exit_code = 7


class ClusterConnectionError(ClusterError):
    """The cluster cannot be reached: address, TLS, time-out."""


class ClusterAuthError(ClusterError):
    """The cluster refused the credentials or the permission."""


class ClusterSettingsError(ClusterError):
    """A cluster setting or an open memory breaker stands in the way."""


class ModelError(ClusterError):
    """A model cannot be registered, uploaded, deployed, found or removed."""


class PredictionMismatchError(ModelError):
    """The deployed model predicts something else than its archive."""

    exit_code = 9


class IndexingError(ClusterError):
    """An index cannot be created or documents cannot be loaded into it."""


class SearchError(ClusterError):
    """The cluster refused a query."""


class VerificationError(OskitError):
    """The cluster's retrieval disagrees with the exact scores."""

    exit_code = 9


class TrainingError(OskitError):
    """Training cannot start, or cannot go on: no teacher is left, the encoder collapsed, ..."""

    exit_code = 11


class TrainingInterrupted(TrainingError):
    """Training was stopped by the user after it had saved a checkpoint; it can go on from there."""

    exit_code = 130


class NodeError(OskitError):
    """The local OpenSearch (process or container) cannot be provided."""

    exit_code = 8


def first_line(error: BaseException, limit: int = 300) -> str:
    """What another library's error says, one line of at most ``limit`` characters; its class if nothing."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return " ".join(line.split())[:limit]
