"""Where oskit keeps what outlives a command; no function here makes a folder."""

from __future__ import annotations

import os
from pathlib import Path

from oskit.errors import DataError


def user_cache() -> Path:
    """What would else be computed or fetched again: ``OSKIT_CACHE_DIR``, else the user's cache folder."""
    import platformdirs

    return _named("OSKIT_CACHE_DIR", platformdirs.user_cache_dir("oskit"))


def user_state() -> Path:
    """What local nodes hold: ``OSKIT_STATE_DIR``, else the user's state folder."""
    import platformdirs

    return _named("OSKIT_STATE_DIR", platformdirs.user_state_dir("oskit"))


def check_writable(folder: str | Path) -> Path:
    """Make sure that files can be written into a folder, which may have to be made first.

    Returns:
        The folder itself, or the nearest one around it that is there.

    Raises:
        DataError: They cannot.
    """
    try:
        path = Path(folder).absolute()
        there = next(found for found in (path, *path.parents) if found.exists())
        problem = (
            f"{there} is a file"
            if not there.is_dir()
            else None
            if os.access(there, os.W_OK | os.X_OK)
            else f"{there} may not be written"
        )
    except OSError as error:  # a name that is too long, a folder that may not be entered
        problem = error.strerror or str(error)
    if problem:
        raise DataError(f"cannot write {folder}: {problem}", hint="Name another folder.")
    return there


def _named(variable: str, default: str) -> Path:
    return Path(os.environ.get(variable) or default).expanduser().absolute()
