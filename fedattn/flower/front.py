"""A TLS front for where no nginx is: `/v1/fleet/` and nothing else reaches the SuperLink.

Flower serves its Control, Runtime and Fleet APIs on one port, and the first two trust whoever
reaches them. So the SuperLink listens on 127.0.0.1, and this process, on the port that the world
sees, passes on POSTs to one path of `/v1/fleet/` and answers everything else with an empty 404.
Bodies stream through and are limited by path; TLS is 1.2 or newer. Unlike nginx it closes no idle
connection that never asked: where the world reaches it, it must have been chosen (`front: python`).
"""

from __future__ import annotations

import argparse
import logging
import re
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Mount
from starlette.types import Receive, Scope, Send

from fedattn.flower.deployment.folders import (
    MAX_BODY_MB,
    MAX_OBJECT_MB,
    OBJECT_PATH,
    open_server,
)
from fedattn.flower.deployment.loopback import CERTIFICATE

PATHS: Final = re.compile(rb"/v1/fleet/[a-z-]+")
_TIMEOUT = httpx.Timeout(60.0, connect=5.0)
_MAX_CONNECTIONS = 1000
_NOT_FORWARDED = {"host", "connection", "keep-alive", "transfer-encoding", "upgrade", "te"}
_log = logging.getLogger("fedattn.front")


class _TooLargeError(Exception):
    """The body is larger than a message may be."""


class Front:
    """The ASGI application: a reverse proxy for one prefix."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        response = Response(status_code=404)
        raw: bytes = scope.get("raw_path", b"")
        is_fleet = scope["type"] == "http" and PATHS.fullmatch(raw) is not None
        if is_fleet and scope["method"] == "POST" and not scope["query_string"]:
            response = await self._forward(Request(scope, receive), raw.decode())
        await response(scope, receive, send)

    async def _forward(self, request: Request, path: str) -> Response:
        headers = [
            (name, value) for name, value in request.headers.items() if name not in _NOT_FORWARDED
        ]
        most = (MAX_OBJECT_MB if path == OBJECT_PATH else MAX_BODY_MB) << 20
        try:
            if int(request.headers.get("content-length", "0")) > most:
                return Response(status_code=413)
            asked = self._client.build_request(
                "POST", path, headers=headers, content=_body(request, most)
            )
            answer = await self._client.send(asked, stream=True)
        except _TooLargeError:
            return Response(status_code=413)
        except (ValueError, ClientDisconnect):
            return Response(status_code=400)
        except httpx.TimeoutException:
            return Response(status_code=504)
        except httpx.HTTPError as error:
            _log.warning("the SuperLink cannot be reached (%s)", type(error).__name__)
            return Response(status_code=502)

        async def stream() -> AsyncIterator[bytes]:
            try:
                async for piece in answer.aiter_raw():
                    yield piece
            finally:
                await answer.aclose()

        kept = {name: value for name, value in answer.headers.items() if name not in _NOT_FORWARDED}
        return StreamingResponse(stream(), answer.status_code, kept)


async def _body(request: Request, most: int) -> AsyncIterator[bytes]:
    """The request's body as it comes; _TooLargeError beyond `most` bytes."""
    seen = 0
    async for piece in request.stream():
        seen += len(piece)
        if seen > most:
            raise _TooLargeError
        yield piece


def make_app(superlink: str, certificate: Path) -> Starlette:
    """The front of the SuperLink at `superlink` (host:port), verified by `certificate` (PEM)."""
    trusted = ssl.create_default_context(cafile=str(certificate))
    client = httpx.AsyncClient(
        base_url=f"https://{superlink}",
        verify=trusted,
        timeout=_TIMEOUT,
        limits=httpx.Limits(max_connections=_MAX_CONNECTIONS, max_keepalive_connections=64),
        trust_env=False,
    )

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with client:
            yield

    return Starlette(routes=[Mount("", app=Front(client))], lifespan=lifespan)


def main(argv: Sequence[str] | None = None) -> None:
    """Serve the front of a server's folder until SIGTERM."""
    parser = argparse.ArgumentParser(prog="fedattn.flower.front", description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = open_server(parser.parse_args(argv).folder)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    config = uvicorn.Config(
        make_app(folder.superlink, folder.path / CERTIFICATE),
        host=folder.listen,
        port=folder.port,
        ssl_certfile=str(folder.path / "tls.pem"),
        ssl_keyfile=str(folder.path / "tls-key.pem"),
        ws="none",
        access_log=False,
        server_header=False,
        date_header=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=5,  # whoever keeps a request open does not keep this process
        limit_concurrency=_MAX_CONNECTIONS,
        log_config=None,
    )
    config.load()
    assert config.ssl is not None
    config.ssl.minimum_version = ssl.TLSVersion.TLSv1_2
    uvicorn.Server(config).run()


if __name__ == "__main__":
    main()
