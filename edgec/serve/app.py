"""The application: routes, and what every request has to pass."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hmac
import json
import secrets
import time
from collections.abc import Awaitable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from edgec.serve import completions, protocol
from edgec.serve.embeddings import Encoder
from edgec.serve.errors import ApiError
from edgec.serve.stream import Disconnected, EventStream, while_connected
from edgec.serve.worker import Worker

T = TypeVar("T")
BODY_TIMEOUT_S = 30.0
LOOPBACK = ("127.0.0.1", "localhost", "::1")
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'nonce-{0}'; style-src 'nonce-{0}'; connect-src 'self'; "
    "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


@dataclass
class Settings:
    """hosts: names that the Host header may have (None: any). key: what clients must present (None: nothing).
    max_body in bytes; timeout_s of a whole generation."""

    key: str | None = None
    hosts: tuple[str, ...] | None = LOOPBACK
    max_body: int = 1 << 20
    timeout_s: float = 600.0


@dataclass
class Served:
    """The models by name."""

    workers: dict[str, Worker] = field(default_factory=dict)
    encoders: dict[str, Encoder] = field(default_factory=dict)
    started: int = field(default_factory=lambda: int(time.time()))


class Guard:
    """Host names, the key and JSON errors, before and around every request."""

    def __init__(self, app: Any, settings: Settings) -> None:
        self.app, self.settings = app, settings

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]}
        try:
            self._check(scope["path"], headers)
        except ApiError as error:
            await _answer(error)(scope, receive, send)
            return
        await self.app(scope, receive, send)

    def _check(self, path: str, headers: dict[str, str]) -> None:
        hosts, key = self.settings.hosts, self.settings.key
        name = headers.get("host", "").rsplit(":", 1)[0] if "]" not in headers.get("host", "") else "::1"
        if hosts is not None and name.lower() not in hosts:
            # a page of another site that has its name point here (DNS rebinding)
            raise ApiError(421, "the Host header names another server", code="wrong_host")
        if key is not None and path.startswith(("/v1/", "/metrics")):
            scheme, _, given = headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), key.encode()):
                raise ApiError(401, "the API key is missing or wrong", code="invalid_api_key",
                               headers={"WWW-Authenticate": "Bearer"})  # fmt: skip


def _answer(error: ApiError) -> JSONResponse:
    return JSONResponse(error.body(), error.status, error.headers)


class Api:
    """The routes' functions."""

    def __init__(self, served: Served, settings: Settings) -> None:
        self.served, self.settings = served, settings
        self.page = (Path(__file__).with_name("page.html")).read_text()

    async def chat(self, request: Request) -> Response:
        return await self._complete(request, chat=True)

    async def complete(self, request: Request) -> Response:
        return await self._complete(request, chat=False)

    async def _complete(self, request: Request, chat: bool) -> Response:
        wanted = protocol.completion(await self._body(request), chat)
        worker = self._model(self.served.workers, wanted.model)
        requests = await asyncio.to_thread(completions.make_requests, worker, wanted)
        form = completions.Form(wanted, worker)
        answers = worker.submit(requests)
        if wanted.stream:
            return EventStream(self._limited(completions.events(form, answers), answers))
        return JSONResponse(await self._within(request, completions.gather(form, answers)))

    async def _within(self, request: Request, work: Awaitable[T]) -> T:
        """The work's result, unless the client goes or the time is over: then the work is cancelled."""
        try:
            async with asyncio.timeout(self.settings.timeout_s):
                return await while_connected(work, request.receive)
        except TimeoutError:
            raise ApiError(504, f"it took more than {self.settings.timeout_s:g} s", code="timeout") from None

    async def _limited(self, events, answers):
        """The events, up to the time limit."""
        timer = asyncio.get_running_loop().call_later(self.settings.timeout_s, lambda: [a.cancel() for a in answers])
        try:
            async with contextlib.aclosing(events):
                async for event in events:
                    yield event
        finally:
            timer.cancel()

    async def embed(self, request: Request) -> Response:
        wanted = protocol.embedding(await self._body(request))
        encoder = self._model(self.served.encoders, wanted.model)
        vectors, tokens = await self._within(request, encoder.run(wanted.inputs))
        if wanted.dimensions not in (None, len(vectors[0])):
            reason = f"the model's embeddings have {len(vectors[0])} dimensions"
            raise ApiError(400, reason, code="invalid_value", param="dimensions")

        def form(v: np.ndarray) -> Any:
            return base64.b64encode(v.astype("<f4").tobytes()).decode() if wanted.base64 else v.tolist()

        data = [{"object": "embedding", "index": i, "embedding": form(v)} for i, v in enumerate(vectors)]
        totals = {"prompt_tokens": tokens, "total_tokens": tokens}
        return JSONResponse({"object": "list", "data": data, "model": wanted.model, "usage": totals})

    async def models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._describe(n) for n in self._names()]})

    async def model(self, request: Request) -> Response:
        name = request.path_params["name"]
        self._model(dict.fromkeys(self._names(), True), name)
        return JSONResponse(self._describe(name))

    def _names(self) -> list[str]:
        return [*self.served.workers, *self.served.encoders]

    def _describe(self, name: str) -> dict:
        found = {"id": name, "object": "model", "created": self.served.started, "owned_by": "edgec"}
        worker = self.served.workers.get(name)
        return found if worker is None else found | {"context_length": worker.model.context}

    async def health(self, request: Request) -> Response:
        alive = all(w._thread.is_alive() for w in self.served.workers.values())
        return JSONResponse({"status": "ok" if alive else "an engine has stopped"}, 200 if alive else 500)

    async def metrics(self, request: Request) -> Response:
        lines = []
        for name, worker in self.served.workers.items():
            label = '{model="' + name.replace("\\", "\\\\").replace('"', '\\"').replace("\n", " ") + '"}'
            lines += [f"edgec_{k}_total{label} {v}" for k, v in vars(worker.counters).items()]
            lines.append(f"edgec_sequences{label} {worker.load}")
        return PlainTextResponse("\n".join(lines) + "\n", media_type="text/plain; version=0.0.4")

    async def index(self, request: Request) -> Response:
        nonce = secrets.token_urlsafe(16)
        headers = {k: v.format(nonce) for k, v in PAGE_HEADERS.items()}
        return HTMLResponse(self.page.replace("NONCE", nonce), headers=headers)

    async def _body(self, request: Request) -> Any:
        """The JSON of the request's body. Raises ApiError 400, 408, 413, 415."""
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise ApiError(415, "the content type must be application/json", code="unsupported_media_type")
        limit = self.settings.max_body
        too_large = ApiError(413, f"the body is larger than {limit} bytes", code="body_too_large")
        length = request.headers.get("content-length", "")
        if length.isdigit() and int(length) > limit:
            raise too_large
        data = bytearray()
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                async for chunk in request.stream():
                    data += chunk
                    if len(data) > limit:
                        raise too_large
        except TimeoutError:
            raise ApiError(408, "the body did not come", code="timeout") from None
        try:
            value = json.loads(bytes(data))
            json.dumps(value, ensure_ascii=False).encode()  # halves of surrogate pairs are no text
            return value
        except (ValueError, RecursionError) as error:
            raise ApiError(400, f"the body is no JSON: {error}", code="invalid_json") from None

    @staticmethod
    def _model(known: dict[str, Any], name: str) -> Any:
        if name not in known:
            reason = f"there is no model '{name}' for this; there is: {', '.join(known) or 'none'}"
            raise ApiError(404, reason, code="model_not_found", param="model")
        return known[name]


def make_app(served: Served, settings: Settings) -> Guard:
    """The ASGI application. Its end stops the workers."""
    api = Api(served, settings)

    @contextlib.asynccontextmanager
    async def lifespan(app):
        yield
        for worker in served.workers.values():
            await asyncio.to_thread(worker.close)

    async def api_error(request, error):
        return _answer(error)

    async def http_error(request, error):
        return _answer(ApiError(error.status_code, str(error.detail), code="http_error"))

    async def gone(request, error):
        return Response(status_code=499)

    async def fault(request, error):
        return _answer(ApiError(500, "a fault inside the server; its log says more", code="internal_error"))

    routes = [
        Route("/", api.index),
        Route("/health", api.health),
        Route("/metrics", api.metrics),
        Route("/v1/models", api.models),
        Route("/v1/models/{name:path}", api.model),
        Route("/v1/chat/completions", api.chat, methods=["POST"]),
        Route("/v1/completions", api.complete, methods=["POST"]),
        Route("/v1/embeddings", api.embed, methods=["POST"]),
    ]
    handlers = {ApiError: api_error, HTTPException: http_error, Disconnected: gone, ClientDisconnect: gone,
                Exception: fault}  # fmt: skip
    return Guard(Starlette(routes=routes, exception_handlers=handlers, lifespan=lifespan), settings)
