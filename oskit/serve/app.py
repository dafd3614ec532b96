"""The ASGI application: paths, what they answer, and what is refused."""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from oskit.errors import EncoderError, OskitError, first_line
from oskit.serve.bodies import Asked, ml_commons, parsed, tei
from oskit.serve.refusals import Refusal

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from oskit.serve.metrics import Metrics
    from oskit.serve.model import Model

HEALTHY_FOR_S = 5.0
"""How long a probe that went well is believed."""

PROBE_WITHIN_S = 20.0

BODIES_AT_ONCE = 16
"""Memory for the bodies of all requests under way, in largest bodies."""

GONE = 499
"""The status, in the metrics alone, of a request whose client has hung up."""

logger = logging.getLogger(__name__)

Handler = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True)
class Limits:
    """What a request, and all of them together, may take.

    Attributes:
        texts: Of one request.
        queue: Texts under way, of each model and kind.
        body: Bytes of one request.
        timeout: Seconds from a request's first byte to its answer.
    """

    texts: int = 1024
    queue: int = 4096
    body: int = 8_000_000
    timeout: float = 60.0


class Service:
    """What answers requests.

    Args:
        models: By name; their paths begin with ``/models/NAME``, and those of a single one with nothing too.
        limits: What requests may take.
        metrics: Told what happens.
        tokens: Any of them has to come with a request, but for ``/health`` and ``/ping``; none if empty.
    """

    def __init__(
        self, models: Mapping[str, Model], limits: Limits, metrics: Metrics, tokens: Sequence[str] = ()
    ) -> None:
        self.models = models
        self.draining = False
        self._limits = limits
        self._metrics = metrics
        self.accept(tokens)
        self._held = 0
        self._healthy_since: dict[str, float] = {}

    def app(self) -> ASGIApp:
        """The application."""
        routes = [Route("/health", self._handle(self._health)), Route("/metrics", self._handle(self._page))]
        for prefix in ("", "/models/{model}"):
            routes += [
                Route(f"{prefix}/info", self._handle(self._info)),
                Route(f"{prefix}/v1/sparse", self._handle(self._documents), methods=["POST"]),
                Route(f"{prefix}/v1/sparse/query", self._handle(self._queries), methods=["POST"]),
                Route(f"{prefix}/embed_sparse", self._handle(self._tei), methods=["POST"]),
            ]
        routes.append(Route("/models/{model}/health", self._handle(self._health)))
        # Amazon SageMaker's
        routes.append(Route("/ping", self._handle(self._health)))
        routes.append(Route("/invocations", self._handle(self._invocations), methods=["POST"]))

        async def other(request: Request, error: Exception) -> Response:
            assert isinstance(error, HTTPException)
            known = sorted({route.path for route in routes})
            message = f"{request.method} {request.url.path} is not served; these are: {', '.join(known)}"
            return _refused(Refusal("NotFound", message, status=error.status_code))

        starlette = Starlette(routes=routes, exception_handlers={404: other, 405: other})
        starlette.router.redirect_slashes = False

        async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http" and not self._may(scope):
                refusal = Refusal("Unauthorized", "a valid `Authorization: Bearer` token is needed")
                await _refused(refusal)(scope, receive, send)
            else:
                await starlette(scope, receive, send)

        return guarded

    def accept(self, tokens: Sequence[str]) -> None:
        """Ask for one of these from now on."""
        self._tokens = [token.encode() for token in tokens]

    def _may(self, scope: Scope) -> bool:
        if not self._tokens or scope["path"] in ("/health", "/ping"):
            return True
        given = dict(scope["headers"]).get(b"authorization", b"")
        scheme, _, token = given.partition(b" ")
        known = [hmac.compare_digest(token.strip(), wanted) for wanted in self._tokens]
        return scheme.lower() == b"bearer" and any(known)

    def _handle(self, handler: Handler) -> Handler:
        """A handler that never raises, and is counted."""

        async def handled(request: Request) -> Response:
            start = time.monotonic()
            try:
                response = await handler(request)
            except Refusal as refusal:
                response = _refused(refusal)
            except ClientDisconnect:
                response = Response(status_code=GONE)
            except OskitError as error:
                response = _refused(Refusal("Backend", str(error)))
                if not isinstance(error, EncoderError):
                    logger.warning("%s", error)
            except Exception as error:
                logger.exception("a request failed")
                message = f"unexpected {type(error).__name__}: {first_line(error)}"
                response = _refused(Refusal("Backend", message, status=500))
            model = request.path_params.get("model", "")
            # By what is decoded: a quoted name would stay, and be a label for ever.
            path = request.scope["path"].removeprefix(f"/models/{model}")
            known = model if model in self.models else self._only()
            self._metrics.requests.labels(known, path, response.status_code).inc()
            self._metrics.seconds.labels(path).observe(time.monotonic() - start)
            return response

        return handled

    def _only(self) -> str:
        return next(iter(self.models)) if len(self.models) == 1 else ""

    def _model(self, request: Request) -> Model:
        name = request.path_params.get("model") or self._only()
        model = self.models.get(name)
        if model is None:
            known = ", ".join(f"/models/{name}" for name in self.models)
            what = f"there is no model {name!r} here" if name else "several models are served here"
            raise Refusal("NotFound", f"{what}; paths begin with one of: {known}")
        return model

    async def _documents(self, request: Request) -> Response:
        return await self._encode(request, lambda body: ml_commons(body, "documents", self._limits.texts))

    async def _queries(self, request: Request) -> Response:
        return await self._encode(request, lambda body: ml_commons(body, "queries", self._limits.texts))

    async def _invocations(self, request: Request) -> Response:
        return await self._encode(request, lambda body: ml_commons(body, None, self._limits.texts))

    async def _tei(self, request: Request) -> Response:
        return await self._encode(request, lambda body: tei(body, self._limits.texts))

    async def _encode(self, request: Request, read: Callable[[dict[str, Any]], Asked]) -> Response:
        model = self._model(request)
        deadline = asyncio.get_running_loop().time() + self._limits.timeout
        body = _Body(self, request)
        try:
            try:
                async with asyncio.timeout_at(deadline):
                    content = await body.read()
            except TimeoutError:
                message = f"the body was not here after {self._limits.timeout:g} s"
                raise Refusal("Validation", message, status=408) from None
            asked = read(parsed(content))
            if not asked.texts:
                return _json(b"[]")
            if not asked.truncate:
                await asyncio.to_thread(model.refuse_long, asked.texts)
            rows = await self._answered(model.encode(asked), request, deadline)
        finally:
            body.release()
        return Response(status_code=GONE) if rows is None else _json(b"[" + b",".join(rows) + b"]")

    async def _answered(
        self, future: Future[list[bytes]], request: Request, deadline: float
    ) -> list[bytes] | None:
        """The answer; None if the client has hung up meanwhile."""
        if future.done():
            return future.result()
        loop = asyncio.get_running_loop()
        answer = asyncio.wrap_future(future)
        gone = loop.create_task(_gone(request))
        try:
            both: set[asyncio.Future[Any]] = {answer, gone}
            await asyncio.wait(both, timeout=deadline - loop.time(), return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                return answer.result()
            if gone.done():
                return None
            message = f"no answer within {self._limits.timeout:g} s"
            raise Refusal("Overloaded", message, status=503, retry_after=5)
        finally:
            gone.cancel()
            answer.cancel()  # takes what still waits out of the queue

    async def _health(self, request: Request) -> Response:
        if self.draining:
            raise Refusal("Unhealthy", "the service is ending")
        named = request.path_params.get("model")
        for model in [self._model(request)] if named else self.models.values():
            await self._probe(model)
        return _json(b'{"status":"ok"}')

    async def _probe(self, model: Model) -> None:
        if time.monotonic() - self._healthy_since.get(model.name, float("-inf")) < HEALTHY_FOR_S:
            return
        answers = [asyncio.wrap_future(future) for future in model.probe()]
        try:
            model.judge(await asyncio.wait_for(asyncio.gather(*answers), PROBE_WITHIN_S))
        except TimeoutError:
            raise Refusal("Unhealthy", f"{model.name} did not answer within {PROBE_WITHIN_S:g} s") from None
        except OskitError as error:
            raise Refusal("Unhealthy", str(error)) from None
        self._healthy_since[model.name] = time.monotonic()

    async def _info(self, request: Request) -> Response:
        limits = {"max_client_batch_size": self._limits.texts, "max_concurrent_requests": self._limits.queue}
        if len(self.models) == 1 or request.path_params.get("model"):
            return _json(orjson.dumps({**self._model(request).info(), **limits}))
        return _json(orjson.dumps({"models": [{**model.info(), **limits} for model in self.models.values()]}))

    async def _page(self, _request: Request) -> Response:
        return Response(self._metrics.page(), media_type="text/plain; version=0.0.4; charset=utf-8")

    def hold(self, size: int) -> None:
        """Take memory for a part of a body.

        Raises:
            Refusal: Bodies take too much already.
        """
        if self._held + size > BODIES_AT_ONCE * self._limits.body:
            raise Refusal("Overloaded", "Model is overloaded: too many requests at once", retry_after=1)
        self._held += size

    def let_go(self, size: int) -> None:
        """Give it back."""
        self._held -= size

    @property
    def limits(self) -> Limits:
        """What requests may take."""
        return self._limits


class _Body:
    """A request's body, bounded, as long as it is under way."""

    def __init__(self, service: Service, request: Request) -> None:
        self._service = service
        self._request = request
        self._held = 0

    async def read(self) -> bytes:
        headers, limit = self._request.headers, self._service.limits.body
        if headers.get("content-encoding", "identity") != "identity":
            raise Refusal("Validation", "the body must not be compressed", status=415)
        if (length := headers.get("content-length", "")).isdigit() and int(length) > limit:
            raise _too_large(limit)
        parts = []
        async for part in self._request.stream():
            self._service.hold(len(part))
            self._held += len(part)
            if self._held > limit:
                raise _too_large(limit)
            parts.append(part)
        return b"".join(parts)

    def release(self) -> None:
        self._service.let_go(self._held)


def _too_large(limit: int) -> Refusal:
    return Refusal("Validation", f"the body has more than {limit:,} bytes", status=413)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _json(content: bytes) -> Response:
    return Response(content, media_type="application/json")


def _refused(refusal: Refusal) -> Response:
    return Response(
        orjson.dumps(refusal.body),
        status_code=refusal.status,
        headers=refusal.headers,
        media_type="application/json",
    )
