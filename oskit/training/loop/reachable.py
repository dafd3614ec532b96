"""Whether models and data sets are there to be had: in a folder, in the Hub's cache, or on the Hub."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Literal

from oskit.encoder.loader import hub
from oskit.errors import DataError, EncoderError, EncoderNotFoundError, first_line
from oskit.training.recipe.file import STAGE
from oskit.training.recipe.sources import Place

_TIMEOUT = 30


def check_model(name: str, revision: str | None) -> None:
    """Make sure that a model is a folder, in the Hub's cache, or on the Hub.

    Raises:
        NotOnHubError: None of them.
        HubUnreachableError: Neither of the first two, and the Hub gives no answer.
        EncoderError: The Hub has it, but no such revision.
    """
    if STAGE.search(name) or Path(name).expanduser().is_dir():
        return
    hint = "Check the name of the model and the network."
    if not hub.is_repository_name(name):
        raise hub.NotOnHubError(f"there is no folder {name}", hint=hint)
    try:
        hub.fetch(name, hub.HubOptions(revision=revision, local_files_only=True))
    except EncoderError:
        try:
            _ask_hub(name, revision, "model")
        except (hub.NotOnHubError, hub.HubUnreachableError) as error:
            raise type(error)(f"there is no folder {name}, and {error.message}", hint=hint) from error


def check_data_set(place: Place) -> None:
    """Make sure that a data set is on the Hub, if it answers: `datasets` may have it in its cache.

    Raises:
        DataError: It is not.
    """
    assert place.hub is not None
    try:
        with suppress(hub.HubUnreachableError):
            _ask_hub(place.hub, place.revision, "dataset")
    except EncoderNotFoundError as error:
        hint = "Check its name, revision and the login, or give a file."
        raise DataError(error.message, hint=hint) from error


def _ask_hub(name: str, revision: str | None, kind: Literal["model", "dataset"]) -> None:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    if hub.is_offline():
        raise hub.HubUnreachableError("the Hub must not be asked (HF_HUB_OFFLINE)")
    try:
        HfApi(endpoint=hub.endpoint()).repo_info(name, revision=revision, repo_type=kind, timeout=_TIMEOUT)
    except RevisionNotFoundError as error:
        raise EncoderNotFoundError(f"the Hub's {kind} {name} has no revision {revision!r}") from error
    except RepositoryNotFoundError as error:
        raise hub.NotOnHubError(f"the Hub has no {kind} {name}, or you may not read it") from error
    except Exception as error:  # whatever huggingface_hub and its HTTP library raise
        raise hub.HubUnreachableError(f"no answer from the Hub: {first_line(error)}") from error
