"""Clients that begin a request and never end its head."""

from __future__ import annotations

import asyncio

import pytest

uvicorn = pytest.importorskip("uvicorn")


def test_slow_heads_are_closed(monkeypatch):
    from edgec.serve import connection

    monkeypatch.setattr(connection, "HEAD_TIMEOUT_S", 0.2)

    async def app(scope, receive, send):
        await asyncio.sleep(0.5)  # longer than a head may take
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    async def run() -> list[bytes]:
        config = uvicorn.Config(app, http=connection.Connection, port=0, lifespan="off", log_config=None)
        config.load()
        server = uvicorn.Server(config)
        server.lifespan = config.lifespan_class(config)
        await server.startup()
        port = server.servers[0].sockets[0].getsockname()[1]

        async def ask(*parts: bytes) -> bytes:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            for part in parts:
                writer.write(part)
            found = b""
            while chunk := await asyncio.wait_for(reader.read(1000), 20):
                found += chunk
            writer.close()
            return found

        whole = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
        found = await asyncio.gather(ask(), ask(b"GET / HT"), ask(whole))
        await server.shutdown()
        return found

    nothing, half, whole = asyncio.run(run())
    assert b"200" not in nothing + half and whole.endswith(b"ok")
