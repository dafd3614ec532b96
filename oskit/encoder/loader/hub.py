"""The Hugging Face Hub as a source of encoders: the files needed, its cache, its token, offline too."""

from __future__ import annotations

import glob
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from oskit.encoder.loader.hub_cache import NEWEST, CachedRepository, missing_from
from oskit.encoder.loader.report import CachedCopyWarning
from oskit.errors import (
    BrokenEncoderError,
    EncoderError,
    EncoderNotFoundError,
    HubAccessError,
    first_line,
)
from oskit.extras import require

Result = TypeVar("Result")

ATTEMPTS = 4
"""Tries of a request that failed for a passing reason: a 5xx or 429 answer, a cut connection, a time-out."""

WAIT = 0.5
"""Seconds before the second try; doubled before each further one."""


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
        revision: Their commit.
        reason: One line on how they came there.
        warning: One line where it may not be the commit that was asked for: which one it is, and why.
    """

    folder: Path
    revision: str
    reason: str
    warning: str | None = None


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
        BrokenEncoderError: It is in the cache only in part, and cannot be downloaded.
        MissingDependencyError: There is no such folder, and huggingface_hub is not installed.

    Warns:
        CachedCopyWarning: A copy in the cache is used, because the Hub did not give what was asked for.
    """
    local = Path(name).expanduser()
    if local.is_dir():
        return local
    nothing = f"there is no file or folder {name}"
    require(f"{nothing}, and asking the Hub for it", "export", ["huggingface_hub"])
    if not is_repository_name(str(name)):
        raise EncoderNotFoundError(nothing, hint="Check the name of the model.")
    try:
        snapshot = fetch(str(name), options or HubOptions())
    except (NotOnHubError, HubUnreachableError) as error:
        raise EncoderNotFoundError(
            f"{nothing}, and the Hub does not give it either: {error.message}",
            hint="Check the name of the model and the network.",
        ) from error
    if snapshot.warning:
        warnings.warn(snapshot.warning, CachedCopyWarning, stacklevel=2)
    return snapshot.folder


def fetch(name: str, options: HubOptions) -> Snapshot:
    """Bring an encoder's files into the Hub's cache, or find them there.

    A commit that is there only in part is not used. Where the newest one cannot be had, the complete one
    before it is taken, with a warning.

    Raises:
        NotOnHubError: There is no such repository, and nothing of it in the cache.
        HubUnreachableError: No answer (or offline), and nothing of it in the cache.
        HubAccessError: A login, another token or the owner's consent is needed.
        EncoderNotFoundError: The repository has no such revision.
        BrokenEncoderError: It is in the cache only in part, and cannot be downloaded.
    """
    if options.local_files_only or is_offline():
        why = "local_files_only" if options.local_files_only else "HF_HUB_OFFLINE is set"
        return _cached(name, options, HubUnreachableError(f"the Hub was not asked ({why})"), asked=False)
    try:
        return _downloaded(name, options)
    except EncoderError as error:
        return _cached(name, options, error, asked=True)


def _downloaded(name: str, options: HubOptions) -> Snapshot:
    """What the Hub has now. It is asked for the files first: a missing repository is no failed download."""
    from huggingface_hub import HfApi, snapshot_download

    api = HfApi(endpoint=endpoint(), token=options.token)
    with _named(name, options):
        info = _retried(lambda: api.model_info(name, revision=options.revision, timeout=30))
    commit = str(info.sha)
    repository = _repository(name, options)
    files = repository.needed(sibling.rfilename for sibling in info.siblings or ())
    with _named(name, options, downloading=True):
        # By its commit: else huggingface_hub lets the branch point to it before its first file is there.
        path = _retried(
            lambda: snapshot_download(
                name,
                revision=commit,
                token=options.token,
                cache_dir=repository.cache,
                endpoint=endpoint(),
                allow_patterns=[glob.escape(file) for file in files],
                tqdm_class=_progress_class(),
            )
        )
    # Where it cannot list the files, huggingface_hub returns what there is.
    if missing := missing_from(Path(path), files):
        raise BrokenEncoderError(f"the download of {name} left out {missing}", hint=_AGAIN)
    repository.point(options.revision or NEWEST, commit)
    return Snapshot(Path(path), commit, f"commit {commit[:12]}")


def _cached(name: str, options: HubOptions, error: EncoderError, *, asked: bool) -> Snapshot:
    """A complete copy in the cache, where there is one; ``error`` says why the Hub does not give it."""
    repository = _repository(name, options)
    commit, missing = repository.complete(options.revision)
    why = "; ".join([error.message, *missing])
    if commit is not None:
        reason = f"cached commit {commit[:12]} used: {why}"
        warning = f"{name}: {reason}" if asked or missing else None
        return Snapshot(repository.snapshot(commit), commit, reason, warning)
    if not isinstance(error, (HubUnreachableError, NotOnHubError)):
        raise error
    if repository.folder.is_dir():  # it was there once: an untrained encoder must not take its place
        raise BrokenEncoderError(f"no complete copy of {name} is in the cache: {why}", hint=_AGAIN) from error
    if isinstance(error, HubUnreachableError):
        raise HubUnreachableError(f"not in the cache, and {error.message}") from error
    raise error


def _repository(name: str, options: HubOptions) -> CachedRepository:
    """In the cache by the environment as it is now; huggingface_hub reads it once, when it is imported."""
    from huggingface_hub import constants

    home = os.environ.get("HF_HOME")
    chosen = (
        options.cache_folder
        or os.environ.get("HF_HUB_CACHE")
        or (Path(home) / "hub" if home else os.environ.get("SENTENCE_TRANSFORMERS_HOME"))
    )
    return CachedRepository(name, Path(chosen or constants.HF_HUB_CACHE).expanduser(), options.code)


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


@contextmanager
def _named(name: str, options: HubOptions, *, downloading: bool = False) -> Iterator[None]:
    """Turn what huggingface_hub raises in a block into our errors, one line each."""
    try:
        yield
    except Exception as error:
        raise _in_words(error, name, options, downloading=downloading) from error


def _in_words(error: Exception, name: str, options: HubOptions, *, downloading: bool) -> EncoderError:
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalTokenNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if isinstance(error, RevisionNotFoundError):
        return EncoderNotFoundError(
            f"the Hub's repository {name} has no revision {options.revision!r}",
            hint="Give a branch, a tag or a commit of it.",
        )
    if isinstance(error, LocalTokenNotFoundError):
        return HubAccessError(f"no token to load {name} with", hint=_LOGIN)
    cause = error.__cause__ if isinstance(error.__cause__, HfHubHTTPError) else error
    if isinstance(cause, HfHubHTTPError):
        status = cause.response.status_code
        if status in (401, 403):
            return _refused(name, status, gated=isinstance(cause, GatedRepoError))
        if isinstance(cause, RepositoryNotFoundError) or (status == 404 and not downloading):
            return NotOnHubError("the Hub has no such repository (404)")
    if isinstance(error, OSError) and error.errno is not None:
        return EncoderError(
            f"{name} cannot be written to the Hub's cache: {error.strerror}",
            hint="Make room, or name another folder by cache_folder or HF_HUB_CACHE.",
        )
    while error.__cause__ is not None:  # huggingface_hub wraps its own advice around the reason
        error = error.__cause__  # type: ignore[assignment]
    reason = first_line(error, 200)
    if downloading:
        return BrokenEncoderError(
            f"the download of {name} from {endpoint()} failed again and again: {reason}", hint=_AGAIN
        )
    return HubUnreachableError(f"no answer from the Hub: {reason}")


_AGAIN = "Try again with the Hub within reach: what is there already is kept and the download goes on."
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
