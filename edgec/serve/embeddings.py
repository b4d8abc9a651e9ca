"""Sentence embeddings of encoders: tokens, one run for each text, mean of the tokens' vectors, length 1."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from edgec.errors import EdgecError
from edgec.runtime.generate.text import Tokenizer, member_json
from edgec.runtime.session import Session
from edgec.serve.errors import ApiError


class Encoder:
    """A session that makes embeddings.

    The vector is the output of rank 2 if there is one, else the mean over the tokens of the first output of rank 3
    (Reimers and Gurevych 2019), normalised. Raises EdgecError EC1001 where the model is no encoder of text, EC1701
    where the artifact has no tokenizer.
    """

    def __init__(self, name: str, session: Session, queue: int) -> None:
        self.name, self.session, self.queue = name, session, queue
        self.load = 0  # requests that run or wait
        self.thread = ThreadPoolExecutor(1, f"encoder {name}")
        self.roles = {role: self._input(role) for role in ("ids", "mask", "type")}
        left = {p.name for p in session.inputs} - {r for r in self.roles.values() if r}
        ranks = {len(p.shape): p.name for p in reversed(session.outputs) if p.dtype == "float32"}
        self.output, self.pooled = ranks.get(2, ranks.get(3)), 2 in ranks
        if self.roles["ids"] is None or left or self.output is None:
            raise EdgecError(
                "EC1001",
                "it is neither a language model nor an encoder of text",
                str(name),
                "Run it with `edgec run`, or build one with its tokenizer.json beside it",
            )
        data = session.artifact.members.get("tokenizer.json")
        if data is None:
            hint = "Build it from the folder that has tokenizer.json"
            raise EdgecError("EC1701", "the artifact has no tokenizer", str(name), hint)
        self.tokenizer = Tokenizer(data)
        self.limit = self._limit()

    def _input(self, role: str) -> str | None:
        ports = [p for p in self.session.inputs if len(p.shape) == 2 and p.dtype in ("int64", "int32")]
        named = [p.name for p in ports if role in p.name.lower() and not (role == "ids" and "type" in p.name.lower())]
        return named[0] if named else None

    def _limit(self) -> int:
        """Tokens that the model takes."""
        config = member_json(self.session.artifact.members, "config.json")
        given = member_json(self.session.artifact.members, "tokenizer_config.json").get("model_max_length")
        found = [v for v in (config.get("max_position_embeddings"), given) if isinstance(v, int) and 0 < v < 1 << 24]
        return min(found, default=512)

    def encode(self, text: Any) -> list[int]:
        ids = self.tokenizer.encode(text) if isinstance(text, str) else list(text)
        if not ids:
            raise ApiError(400, "input is empty", code="invalid_value", param="input")
        if not all(0 <= i < 1 << 31 for i in ids):
            raise ApiError(400, "input has an id that is no token", code="invalid_value", param="input")
        if len(ids) > self.limit:
            reason = f"input has {len(ids)} tokens, the model takes {self.limit}"
            raise ApiError(400, reason, code="context_length_exceeded", param="input")
        return ids

    def embed(self, ids: list[int]) -> np.ndarray:
        """float32 [dim] of length 1."""
        kinds = {p.name: p.dtype for p in self.session.inputs}
        values = {"ids": ids, "mask": [1] * len(ids), "type": [0] * len(ids)}
        feeds = {name: np.array([values[role]], kinds[name]) for role, name in self.roles.items() if name}
        found = self.session(**feeds)[self.output][0]
        vector = np.asarray(found if self.pooled else found.mean(axis=0), np.float32)
        return vector / max(float(np.linalg.norm(vector)), 1e-12)

    async def run(self, inputs: list[Any]) -> tuple[list[np.ndarray], int]:
        """A vector for each input, and the number of tokens; cancelled, it ends after the text at hand.

        Raises ApiError 400, 429 beyond `queue` waiting requests.
        """
        if self.load > self.queue:
            raise ApiError(429, "too many requests are waiting", code="queue_full", headers={"Retry-After": "1"})
        gone = threading.Event()

        def work() -> tuple[list[np.ndarray], int]:
            try:
                ids = [self.encode(i) for i in inputs]
                return [self.embed(i) for i in ids if not gone.is_set()], sum(map(len, ids))
            except EdgecError as error:
                raise ApiError.of(error) from None

        self.load += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self.thread, work)
        finally:
            gone.set()
            self.load -= 1
