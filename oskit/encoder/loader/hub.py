"""The Hugging Face Hub as a source of encoders: the files needed, its cache, its token, offline too."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from oskit.errors import BrokenEncoderError, EncoderError, EncoderNotFoundError, HubAccessError, first_line

Result = TypeVar("Result")

ATTEMPTS = 4
"""Tries of a request that failed for a passing reason: a 5xx or 429 answer, a cut connection, a time-out."""

WAIT = 0.5
"""Seconds before the second try; doubled before each further one."""

_FILES = (
    *("*.json", "*.txt", "*.model", "neural_sparse_head.pt"),
    *("model.safetensors", "model-*.safetensors", "*/model.safetensors", "*/model-*.safetensors"),
)
_NOT_NEEDED = ("onnx/*", "openvino/*", "coreml/*", "checkpoint-*/*", "runs/*", ".*", "*/.*")


class NotOnHubError(EncoderNotFoundError):
    """The Hub has no such repository."""


class HubUnreachableError(EncoderNotFoundError):
    """The Hub gives no (usable) answer, or must not be asked, and the cache does not have the encoder."""


@dataclass(frozen=True)
class HubOptions:
    """How to ask the Hub; None leaves a choice to huggingface_hub and its environment variables.

    Attributes:
        revision: Branch, tag or commit.
        token: A token, or False to send none.
        cache_folder: Folder of the cache.
        local_files_only: Ask nothing of the network.
        code: Whether the repository's Python files are wanted.
    """

    revision: str | None = None
    token: str | bool | None = None
    cache_folder: str | Path | None = None
    local_files_only: bool = False
    code: bool = False


@dataclass(frozen=True)
class Snapshot:
    """A repository's files on this machine.

    Attributes:
        folder: Where they are.
        revision: Their commit.
        reason: One line on how they came there.
    """

    folder: Path
    revision: str
    reason: str


def endpoint() -> str:
    """The Hub's address, as the environment says it now: ``HF_ENDPOINT`` or the public one."""
    from huggingface_hub import constants

    return (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")


def is_offline() -> bool:
    """Whether ``HF_HUB_OFFLINE`` or ``TRANSFORMERS_OFFLINE`` forbids the network now."""
    from huggingface_hub import constants

    values = (os.environ.get(name, "") for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"))
    return constants.HF_HUB_OFFLINE or any(value.upper() in ("1", "ON", "YES", "TRUE") for value in values)


def is_repository_name(name: str) -> bool:
    """Whether the Hub could have a repository of that name."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def local_or_fetched(name: str | Path, options: HubOptions | None = None) -> Path:
    """The folder of a model of any kind: a local one, or the snapshot of a repository in the Hub's cache.

    Raises:
        EncoderNotFoundError: Neither.
        HubAccessError: A login, another token or the owner's consent is needed.
        BrokenEncoderError: A file's download was cut off again and again.
    """
    local = Path(name).expanduser()
    if local.is_dir():
        return local
    if not is_repository_name(str(name)):
        raise EncoderNotFoundError(f"there is no folder {name}", hint="Check the name of the model.")
    try:
        return fetch(str(name), options or HubOptions()).folder
    except (NotOnHubError, HubUnreachableError) as error:
        raise EncoderNotFoundError(
            f"there is no folder {name}, and the Hub does not give it either: {error.message}",
            hint="Check the name of the model and the network.",
        ) from error


def fetch(name: str, options: HubOptions) -> Snapshot:
    """Bring an encoder's files into the Hub's cache, or find them there.

    Raises:
        NotOnHubError: There is no such repository.
        HubUnreachableError: No answer (or offline), and no cached copy.
        HubAccessError: A login, another token or the owner's consent is needed.
        EncoderNotFoundError: The repository has no such revision.
        BrokenEncoderError: A file's download was cut off again and again.
    """
    if options.local_files_only or is_offline():
        why = "local_files_only" if options.local_files_only else "HF_HUB_OFFLINE is set"
        snapshot = _cached(name, options, f"cached ({why})")
        if snapshot is None:
            raise HubUnreachableError(f"not in the cache, and the Hub was not asked ({why})")
        return snapshot
    try:
        _ask(name, options)
    except (HubUnreachableError, HubAccessError) as error:
        snapshot = _cached(name, options, f"cached copy used: {error.message}")
        if snapshot is None:
            raise
        return snapshot
    return _download(name, options)


def _ask(name: str, options: HubOptions) -> None:
    """Ask for the repository, so that a missing one and a failed download are told apart."""
    from huggingface_hub import HfApi

    api = HfApi(endpoint=endpoint(), token=options.token)
    with _Named(name, options):
        _retried(lambda: api.model_info(name, revision=options.revision, timeout=30))


def _download(name: str, options: HubOptions) -> Snapshot:
    patterns = [*_FILES, *(["*.py"] if options.code else [])]
    with _Named(name, options, downloading=True):
        folder = _retried(lambda: _snapshot(name, options, patterns))
        pickled = _without_safetensors(folder)
        if pickled:
            wanted = [*patterns, *pickled]
            folder = _retried(lambda: _snapshot(name, options, wanted))
    return Snapshot(folder, folder.name, f"commit {folder.name[:12]}")


def _without_safetensors(folder: Path) -> list[str]:
    """Patterns of the older weight files, for the folders that have no safetensors."""
    configs = [path.parent for path in (*folder.glob("config.json"), *folder.glob("*/config.json"))]
    bare = [path.relative_to(folder) for path in configs if not any(path.glob("*.safetensors"))]
    return [(path / "pytorch_model*.bin*").as_posix() for path in bare]


def _snapshot(name: str, options: HubOptions, patterns: Sequence[str], *, offline: bool = False) -> Path:
    from huggingface_hub import snapshot_download

    return Path(
        snapshot_download(
            name,
            revision=options.revision,
            token=options.token,
            cache_dir=_cache_folder(options),
            endpoint=endpoint(),
            local_files_only=offline,
            allow_patterns=list(patterns),
            ignore_patterns=list(_NOT_NEEDED),
            tqdm_class=_progress_class(),
        )
    )


def _cached(name: str, options: HubOptions, reason: str) -> Snapshot | None:
    """A complete copy in the cache; a half-finished download is none."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = _snapshot(name, options, _FILES, offline=True)
    except (LocalEntryNotFoundError, OSError, ValueError):
        return None
    # Older versions of huggingface_hub do not know which files a snapshot should have. The weights are the
    # last to arrive; and other programs may have cached the configuration alone.
    usable = any(any(folder.rglob(pattern)) for pattern in ("*.safetensors", "*.bin"))
    return Snapshot(folder, folder.name, reason) if usable else None


def _cache_folder(options: HubOptions) -> str | None:
    """The cache, by the environment as it is now; huggingface_hub reads it once, when it is imported."""
    if options.cache_folder is not None:
        return str(Path(options.cache_folder).expanduser())
    if os.environ.get("HF_HUB_CACHE"):
        return os.environ["HF_HUB_CACHE"]
    if os.environ.get("HF_HOME"):
        return str(Path(os.environ["HF_HOME"]) / "hub")
    return os.environ.get("SENTENCE_TRANSFORMERS_HOME")


def _progress_class() -> Any:
    """huggingface_hub's own progress bar, silent where stderr is no terminal."""
    if sys.stderr.isatty():
        return None
    from huggingface_hub import utils

    bar: Any = utils.tqdm  # type: ignore[attr-defined]

    def silent(self: Any, *args: Any, **kwargs: Any) -> None:
        bar.__init__(self, *args, **{**kwargs, "disable": True})

    return type("SilentBar", (bar,), {"__init__": silent})


def _transport_errors() -> tuple[type[Exception], ...]:
    """What the HTTP library under huggingface_hub raises; it has been two libraries so far."""
    loaded = (sys.modules.get(name) for name in ("httpx2", "httpx"))
    return tuple(library.TransportError for library in loaded if library is not None)


def _is_passing(error: BaseException) -> bool:
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    if isinstance(error, HfHubHTTPError):
        return error.response.status_code >= 500 or error.response.status_code in (408, 429)
    if isinstance(error, LocalEntryNotFoundError):  # what a download makes of a connection that fails
        return error.__cause__ is not None and _is_passing(error.__cause__)
    too_short = isinstance(error, OSError) and "Consistency check failed" in str(error)
    return too_short or isinstance(error, _transport_errors())


def _retried(request: Callable[[], Result]) -> Result:
    from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential

    retrying = Retrying(
        retry=retry_if_exception(_is_passing),
        stop=stop_after_attempt(ATTEMPTS),
        wait=wait_exponential(multiplier=WAIT, max=8),
        reraise=True,
    )
    return retrying(request)


class _Named:
    """Turns what huggingface_hub raises in a block into our errors, one line each."""

    def __init__(self, name: str, options: HubOptions, *, downloading: bool = False) -> None:
        self.name = name
        self.options = options
        self.downloading = downloading

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: Any, error: BaseException | None, _trace: Any) -> None:
        if isinstance(error, Exception) and not isinstance(error, EncoderError):
            raise self._named(error) from error

    def _named(self, error: Exception) -> EncoderError:
        from huggingface_hub.errors import (
            GatedRepoError,
            HfHubHTTPError,
            LocalTokenNotFoundError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )

        if isinstance(error, RevisionNotFoundError):
            return EncoderNotFoundError(
                f"the Hub's repository {self.name} has no revision {self.options.revision!r}",
                hint="Give a branch, a tag or a commit of it.",
            )
        if isinstance(error, LocalTokenNotFoundError):
            return HubAccessError(f"no token to load {self.name} with", hint=_LOGIN)
        cause = error.__cause__ if isinstance(error.__cause__, HfHubHTTPError) else error
        if isinstance(cause, HfHubHTTPError):
            status = cause.response.status_code
            gated = isinstance(cause, GatedRepoError)
            if status in (401, 403):
                return _refused(self.name, status, gated=gated)
            if isinstance(cause, RepositoryNotFoundError) or (status == 404 and not self.downloading):
                return NotOnHubError("the Hub has no such repository (404)")
        if isinstance(error, OSError) and error.errno is not None:
            return EncoderError(
                f"{self.name} cannot be written to the Hub's cache: {error.strerror}",
                hint="Make room, or name another folder by cache_folder or HF_HUB_CACHE.",
            )
        if self.downloading:
            return BrokenEncoderError(
                f"the download of {self.name} from {endpoint()} failed again and again: {_one_line(error)}",
                hint="Try again: what is there already is kept and the download goes on.",
            )
        return HubUnreachableError(f"no answer from the Hub: {_one_line(error)}")


_LOGIN = "Log in with `hf auth login`, set HF_TOKEN, or pass a token that may read it."


def _refused(name: str, status: int, *, gated: bool) -> HubAccessError:
    if gated:
        return HubAccessError(
            f"{name} is gated: the Hub refused it ({status})",
            hint=f"Ask for access at {endpoint()}/{name}, then log in with `hf auth login` or set HF_TOKEN.",
        )
    return HubAccessError(
        f"the Hub refused {name} ({status}): it is private, or does not exist and you are not logged in",
        hint=f"Check the name. {_LOGIN}",
    )


def _one_line(error: BaseException) -> str:
    """The first line of the deepest reason; huggingface_hub wraps its own advice around it."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error, 200)
