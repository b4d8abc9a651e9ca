"""edgec serve: models behind an OpenAI-compatible API, and a page to chat in."""

from __future__ import annotations

import os
from pathlib import Path

from edgec.cli.common import COMMON, Common, existing, need
from edgec.errors import EdgecError

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def serve(
    *models: Path,
    host: str = "127.0.0.1",
    port: int = 8080,
    api_key: str | None = None,
    model_name: tuple[str, ...] = (),
    max_concurrency: int = 4,
    max_queue: int = 32,
    max_body: int = 1 << 20,
    max_context: int | None = None,
    timeout: float = 600.0,
    threads: int | None = None,
    common: Common = COMMON,
) -> int:
    """Serve language models and encoders over HTTP, as OpenAI's API has it, until it is interrupted.

    Parameters
    ----------
    models
        Artifacts (.edgec); language models generate, encoders make embeddings.
    host
        Address to listen at. Beyond this machine a key is needed.
    port
        0: one that is free.
    api_key
        What clients must present; by default the environment's EDGEC_API_KEY, else none.
    model_name
        Name of a model, in the order of the models; by default the file's.
    max_concurrency
        Sequences that a model generates at once; each has a key-value cache of its own.
    max_queue
        Requests that may wait for a model; further ones get status 429.
    max_body
        Bytes of a request.
    max_context
        Tokens of a sequence; by default the model's.
    timeout
        Seconds that one answer may take.
    threads
        Threads; by default as many as the machine allows this process.
    """
    need("starlette", "serving", "'edgec[serve]'")
    need("uvicorn", "serving", "'edgec[serve]'")
    key = api_key or os.environ.get("EDGEC_API_KEY") or None
    _check(models, host, port, key, model_name, (max_concurrency, max_queue, max_body, timeout))
    import asyncio

    from edgec.serve.app import Settings, make_app

    served = _load(models, model_name, threads, max_concurrency, max_queue, max_context)
    settings = Settings(key, LOOPBACK if host in LOOPBACK else None, max_body, timeout)
    app = make_app(served, settings)
    try:
        return asyncio.run(_serve(app, host, port, [*served.workers, *served.encoders], common))
    except KeyboardInterrupt:  # the signal that ended it, once all is closed
        return 0


def _check(models, host, port, key, names, limits) -> None:
    if not models:
        raise EdgecError("EC1001", "name at least one artifact", "MODELS", "edgec serve model.edgec")
    if len(names) > len(models):
        raise EdgecError(
            "EC1001", f"{len(names)} names for {len(models)} models", "--model-name", "Give at most one name a model"
        )
    if not 0 <= port < 1 << 16:
        raise EdgecError("EC1001", f"{port} is no port", "--port", "Give one of 1 to 65535, or 0 for one that is free")
    for value, option in zip(limits, ("--max-concurrency", "--max-queue", "--max-body", "--timeout")):
        if not value >= (0 if option == "--max-queue" else 1):
            raise EdgecError("EC1001", f"{value} is too small", option, "Give a larger number")
    if host not in LOOPBACK and key is None:
        hint = "Set EDGEC_API_KEY or pass --api-key; without --host it listens on this machine only"
        raise EdgecError("EC1001", f"{host} can be reached by others, and there is no key", "--host", hint)
    for model in models:
        existing(model)


def _load(models, names, threads, concurrency, queue, max_context):
    import edgec
    from edgec.runtime.generate.model import LanguageModel
    from edgec.serve.app import Served
    from edgec.serve.embeddings import Encoder
    from edgec.serve.worker import Worker

    served = Served()
    for i, path in enumerate(models):
        name = names[i] if i < len(names) else path.stem
        if name in served.workers or name in served.encoders:
            raise EdgecError("EC1001", f"two models are called {name!r}", "--model-name", "Name each of them")
        session = edgec.load(path, threads=threads, max_context=max_context)
        if isinstance(session, LanguageModel):
            model = LanguageModel.of(session, max_context, concurrency)
            _ = model.tokenizer  # better now than at the first request
            served.workers[name] = Worker(name, model, queue)
        else:
            served.encoders[name] = Encoder(name, session, queue)
    return served


async def _serve(app, host: str, port: int, names: list[str], common: Common) -> int:
    import socket

    import uvicorn

    from edgec.serve.connection import Connection

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(1024)  # before the address is told: who reads it may come at once
    except OSError as error:
        raise EdgecError("EC1001", f"{host}:{port}: {error.strerror}", "--port", "Choose another port") from None
    at = f"[{host}]" if ":" in host else host
    url = f"http://{at}:{listener.getsockname()[1]}"
    config = uvicorn.Config(app, log_level="warning", access_log=common.debug, limit_concurrency=256,
                            timeout_keep_alive=15, timeout_graceful_shutdown=10, h11_max_incomplete_event_size=1 << 16,
                            server_header=False, http=Connection, ws="none")  # fmt: skip
    if common.json:
        import json

        print(json.dumps({"url": url, "models": names}), flush=True)
    else:
        print(f"edgec serves {', '.join(names)} at {url} (API: {url}/v1; Ctrl-C ends it)", flush=True)
    await uvicorn.Server(config).serve(sockets=[listener])
    return 0
