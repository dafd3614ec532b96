"""Serving as it is often written: each request is a run of its own, in the framework's pool of threads."""

from __future__ import annotations

import json
import socket
import sys
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from oskit.archive.encoder import ArchiveEncoder


def main() -> None:
    """Serve the archive named in the arguments on a free port."""
    encoder = ArchiveEncoder.open(sys.argv[1])

    async def answer(request: Request) -> JSONResponse:
        body: dict[str, Any] = await request.json()
        return JSONResponse(await run_in_threadpool(encoder.document_weights, body["texts"]))

    bound = socket.create_server(("127.0.0.1", 0), backlog=128)
    print(json.dumps({"url": f"http://127.0.0.1:{bound.getsockname()[1]}"}), flush=True)
    app = Starlette(routes=[Route("/", answer, methods=["POST"])])
    uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False)).run([bound])


if __name__ == "__main__":
    main()
