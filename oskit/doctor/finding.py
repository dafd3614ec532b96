"""What a check says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from oskit.errors import OskitError

Status = Literal["ok", "warning", "failure", "skipped"]


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        area: ``machine``, ``packages``, ``loading``, ``encoder`` or ``cluster``.
        name: What was looked at.
        status: ``failure`` means that something will not work; ``warning`` that something optional or
            likely will not; ``skipped`` that it could not be looked at.
        detail: What was found, one line.
        advice: What to do about it, one line; None if there is nothing to do.
    """

    area: str
    name: str
    status: Status
    detail: str
    advice: str | None = None


def attempt(area: str, name: str, check: Callable[[], str]) -> Finding:
    """Run ``check``; its return value is the detail of an ``ok``, an error of oskit's a ``failure``."""
    try:
        return Finding(area, name, "ok", check())
    except OskitError as error:
        return Finding(area, name, "failure", error.message, error.hint)
