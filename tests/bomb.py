"""A pickle that does harm."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any


class Bomb:
    """What a malicious pickle does: run something when it is read; here it makes a folder."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)
