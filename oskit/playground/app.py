"""The page's server: its files, what it asks, and who may ask.

It listens on this machine alone, and whoever asks has to know the token of the URL that was printed, which
the page's cookie keeps. A site that points its own name here (DNS rebinding) is told by ``Host``, one that
sends a form or a script's request by ``Origin``. Credentials of the cluster never leave this process.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import ipaddress
import logging
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from importlib.resources import files
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from oskit.errors import ClusterConnectionError, ClusterError, OskitError, UsageError
from oskit.playground.answer import Judged, answer, error_told, text_weights
from oskit.playground.offer import Offer, TextKind, Way

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

MAX_BODY = 4_000_000
"""Bytes of a request."""

AT_ONCE = 8
"""Questions to the cluster at once; others wait, and those that nobody wants any more are dropped."""

_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
_STATUS = {UsageError: 400, ClusterConnectionError: 503, ClusterError: 502}
"""Of what is told of an error; after 503 the page asks again by itself."""

_FILES = {
    "/playground.css": "text/css",
    "/playground.js": "text/javascript",
    "/icon.svg": "image/svg+xml",
}

logger = logging.getLogger(__name__)

Question = TypeVar("Question", bound=BaseModel)


class _Question(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Search(_Question):
    query: str
    way: Way
    size: int = Field(10, ge=10, le=100)
    judged: str | None = None


class _Weights(_Question):
    text: str
    kind: TextKind
    index: str
    encoder: str = ""


class Playground:
    """The application.

    Args:
        offer: What may be asked.
        token: Has to come with the first request.
        judged: Queries to step through.
        cluster: How the page calls the cluster.
    """

    def __init__(self, offer: Offer, token: str, judged: Judged | None = None, cluster: str = "") -> None:
        self._offer, self._judged, self._cluster = offer, judged, cluster
        self._token = token
        self._free = asyncio.Semaphore(AT_ONCE)
        self._page = files("oskit.playground").joinpath("page")

    def app(self) -> ASGIApp:
        """As ASGI."""
        routes = [
            Route("/", self._index),
            *(Route(path, self._file) for path in _FILES),
            Route("/api/offer", self._handled(self._offered)),
            Route("/api/index", self._handled(self._described)),
            Route("/api/judged", self._handled(self._judgement)),
            Route("/api/search", self._handled(self._search), methods=["POST"]),
            Route("/api/weights", self._handled(self._weights), methods=["POST"]),
        ]
        starlette = Starlette(routes=routes)

        async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                return
            refusal = self._refusal(Request(scope))
            app = starlette if refusal is None else PlainTextResponse(refusal, 403, _HEADERS)
            await app(scope, receive, send)

        return guarded

    def _refusal(self, request: Request) -> str | None:
        """Why a request is not answered."""
        host = request.headers.get("host", "")
        if not _is_here(host):
            return "This is the playground of oskit, which has no such name."
        origin = request.headers.get("origin")
        if origin != f"http://{host}" and (origin is not None or request.method not in ("GET", "HEAD")):
            return "Only the page itself may ask."
        if request.url.path in _FILES or self._knows(request):
            return None
        return "Open the URL that `oskit playground` has printed: it holds a token."

    def _knows(self, request: Request) -> bool:
        given = [request.cookies.get(self._cookie(request), "")]
        if request.url.path == "/":
            given.append(request.query_params.get("token", ""))
        return any(hmac.compare_digest(one.encode(), self._token.encode()) for one in given)

    def _cookie(self, request: Request) -> str:
        """Its name: browsers give the cookies of one port to all others, too."""
        return f"oskit-playground-{request.url.port or 80}"

    async def _index(self, request: Request) -> Response:
        response = Response(self._page.joinpath("index.html").read_bytes(), 200, _HEADERS, "text/html")
        response.set_cookie(self._cookie(request), self._token, httponly=True, samesite="strict")
        return response

    async def _file(self, request: Request) -> Response:
        path = request.url.path
        return Response(self._page.joinpath(path[1:]).read_bytes(), 200, _HEADERS, _FILES[path])

    def _handled(
        self, handler: Callable[[Request], Awaitable[Any]]
    ) -> Callable[[Request], Awaitable[Response]]:
        """A handler whose errors are one line of the page."""

        async def handled(request: Request) -> Response:
            status = 200
            try:
                told = await handler(request)
            except ClientDisconnect:
                return Response(status_code=499)
            except Exception as error:
                status = next((code for kind, code in _STATUS.items() if isinstance(error, kind)), 500)
                if not isinstance(error, OskitError):
                    logger.exception("a request failed")
                told = error_told(error)
            content = orjson.dumps(told, default=str)
            return Response(content, status, _HEADERS, "application/json")

        return handled

    async def _offered(self, request: Request) -> Any:
        names = await self._aside(request, self._offer.names)
        judged = None if self._judged is None else len(self._judged)
        return {"cluster": self._cluster, "indexes": names, "judged": judged}

    async def _described(self, request: Request) -> Any:
        name = request.query_params.get("name", "")
        return await self._aside(request, lambda: self._offer.index(name))

    async def _judgement(self, request: Request) -> Any:
        number = request.query_params.get("number", "")
        if self._judged is None or not number.isdecimal():
            raise UsageError("there are no judged queries here", hint="Give them with --collection DIR")
        return self._judged.to_dict(int(number))

    async def _search(self, request: Request) -> Any:
        asked = _read(_Search, await _body(request))
        return await self._aside(
            request,
            lambda: answer(self._offer, self._judged, asked.query, asked.way, asked.size, asked.judged),
        )

    async def _weights(self, request: Request) -> Any:
        asked = _read(_Weights, await _body(request))
        return await self._aside(
            request, lambda: text_weights(self._offer, asked.text, asked.kind, asked.index, asked.encoder)
        )

    async def _aside(self, request: Request, call: Callable[[], Any]) -> Any:
        """The result of what waits for the cluster, unless the browser has given up on it before it began."""
        call_task = asyncio.ensure_future(self._in_thread(call))
        gone = asyncio.ensure_future(_gone(request))
        try:
            await asyncio.wait({call_task, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not call_task.done():
                raise ClientDisconnect
            return call_task.result()
        finally:
            gone.cancel()
            call_task.cancel()

    async def _in_thread(self, call: Callable[[], Any]) -> Any:
        """Daemon threads: the end of the process does not wait for a cluster that does not answer."""
        await self._free.acquire()
        loop, done = asyncio.get_running_loop(), Future[Any]()
        done.set_running_or_notify_cancel()

        def work() -> None:
            try:
                done.set_result(call())
            except BaseException as error:
                done.set_exception(error)
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(self._free.release)

        threading.Thread(target=work, daemon=True).start()
        return await asyncio.wrap_future(done)


def _is_here(host: str) -> bool:
    """Whether a ``Host`` is a name of this machine for itself."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _body(request: Request) -> bytes:
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > MAX_BODY:
            raise UsageError(f"the text has more than {MAX_BODY // 1_000_000} MB")
        parts.append(part)
    return b"".join(parts)


def _read(kind: type[Question], body: bytes) -> Question:
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, problem["loc"]))
        raise UsageError(f"{where or 'the body'}: {problem['msg'].lower()}") from None
