"""What a request is refused with, in TEI's words: ``{"error": …, "error_type": …}``."""

from __future__ import annotations

import math
from typing import Literal

Kind = Literal[
    "Validation", "Tokenizer", "Empty", "Overloaded", "Unhealthy", "Backend", "Unauthorized", "NotFound"
]

_STATUS: dict[Kind, int] = {
    "Empty": 400,
    "Unauthorized": 401,
    "NotFound": 404,
    "Validation": 422,
    "Tokenizer": 422,
    "Backend": 424,
    "Overloaded": 429,
    "Unhealthy": 503,
}


class Refusal(Exception):
    """A request that is not answered with weights.

    Args:
        kind: Decides the status, as in text-embeddings-inference.
        message: One line: what is wrong.
        status: Another status than the kind's.
        retry_after: Seconds after which the same request may well succeed. ML Commons (3.6) tries again only
            where an answer carries ``x-amzn-ErrorType: ThrottlingException``, so this one does.
    """

    def __init__(
        self, kind: Kind, message: str, *, status: int | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.status = status or _STATUS[kind]
        # Half a surrogate pair, of a name that a client made up, has no form in JSON.
        said = message.encode(errors="replace").decode()
        self.body = {"error": " ".join(said.split()), "error_type": kind}
        self.headers: dict[str, str] = {}
        if retry_after is not None:
            self.headers["retry-after"] = str(max(1, math.ceil(retry_after)))
            self.headers["x-amzn-errortype"] = "ThrottlingException"
        if self.status == 401:
            self.headers["www-authenticate"] = "Bearer"


def overloaded(waiting: int, seconds: float) -> Refusal:
    """The queue is full; ``waiting`` texts are expected to take so many ``seconds``."""
    return Refusal(
        "Overloaded", f"Model is overloaded: {waiting} texts are waiting", retry_after=min(seconds, 30)
    )
