"""HTTP/1.1 connections of uvicorn, with a limit on how long a client may take to ask."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_TIMEOUT_S = 15.0


class Connection(H11Protocol):
    """Closes where a request's head is not whole HEAD_TIMEOUT_S after the connection began, or after its first bytes."""

    _limit: asyncio.TimerHandle | None = None

    def connection_made(self, transport) -> None:
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._drop()

    def _watch(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._drop()
        elif self._limit is None:
            self._limit = self.loop.call_later(HEAD_TIMEOUT_S, self.transport.close)

    def _drop(self) -> None:
        if self._limit is not None:
            self._limit.cancel()
            self._limit = None
