"""Where oskit keeps what outlives a command; no function here makes a folder."""

from __future__ import annotations

import os
from pathlib import Path


def user_cache() -> Path:
    """What would else be computed or fetched again: ``OSKIT_CACHE_DIR``, else the user's cache folder."""
    import platformdirs

    return _named("OSKIT_CACHE_DIR", platformdirs.user_cache_dir("oskit"))


def user_state() -> Path:
    """What local nodes hold: ``OSKIT_STATE_DIR``, else the user's state folder."""
    import platformdirs

    return _named("OSKIT_STATE_DIR", platformdirs.user_state_dir("oskit"))


def _named(variable: str, default: str) -> Path:
    return Path(os.environ.get(variable) or default).expanduser().absolute()
