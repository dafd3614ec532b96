"""Where oskit keeps what it would otherwise compute or fetch again."""

from __future__ import annotations

import os
from pathlib import Path


def user_cache() -> Path:
    """``OSKIT_CACHE_DIR``, else the user's cache folder; absolute, and not made by this function."""
    import platformdirs

    folder = os.environ.get("OSKIT_CACHE_DIR") or platformdirs.user_cache_dir("oskit")
    return Path(folder).expanduser().absolute()
