"""Answers that outlive one send: server-sent events, and waiting beside a client that may go away."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any, TypeVar

from starlette.responses import Response

from edgec.serve.errors import ApiError

WRITE_TIMEOUT_S = 30.0  # a client that reads nothing for so long is gone
T = TypeVar("T")


class Disconnected(Exception):
    """The client is gone."""


async def gone(receive: Callable[[], Awaitable[Any]]) -> None:
    """Returns when the client has closed the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def while_connected(work: Awaitable[T], receive: Callable[[], Awaitable[Any]]) -> T:
    """The work's result. Raises Disconnected, the work cancelled, where the client goes first."""
    task, watch = asyncio.ensure_future(work), asyncio.ensure_future(gone(receive))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise Disconnected
    finally:
        for pending in (task, watch):
            pending.cancel()
            with suppress(BaseException):
                await pending


class EventStream(Response):
    """Server-sent events of JSON objects, then [DONE]; an ApiError on the way becomes the last event."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[dict]) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self.events = events

    async def __call__(self, scope, receive, send) -> None:
        async def write(data: bytes, more: bool = True) -> None:
            message = {"type": "http.response.body", "body": data, "more_body": more}
            await asyncio.wait_for(send(message), WRITE_TIMEOUT_S)

        async def run() -> None:
            try:
                async for event in self.events:
                    await write(_event(event))
                await write(b"data: [DONE]\n\n")
            except ApiError as error:
                await write(_event(error.body()))
            await write(b"", more=False)

        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        try:
            with suppress(Disconnected, TimeoutError, OSError):
                await while_connected(run(), receive)
        finally:
            close = getattr(self.events, "aclose", None)
            if close is not None:
                await close()


def _event(value: dict) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"
