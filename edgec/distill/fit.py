"""The training loop: AdamW, a cosine schedule, checkpoints. The same seed gives the same steps, interrupted or not."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from edgec.errors import EdgecError

WARMUP = 0.05  # share of the steps in which the learning rate rises
EVERY = 60.0  # seconds between checkpoints
CLIP = 1.0  # norm of the gradients


@dataclass(frozen=True)
class Plan:
    """steps of `accumulate` batches each; lr at its peak; minutes: stop and let the schedule end by then."""

    steps: int
    lr: float
    accumulate: int = 1
    decay: float = 0.01
    seed: int = 0
    minutes: float | None = None

    def check(self) -> None:
        for name, value in (("steps", self.steps), ("accumulate", self.accumulate), ("lr", self.lr)):
            if not value > 0 or not math.isfinite(value):
                raise EdgecError("EC1001", f"{value} is not a positive number", f"--{name}")
        if self.minutes is not None and not self.minutes > 0:
            raise EdgecError("EC1001", f"{self.minutes} is not a positive number", "--minutes")


@dataclass(frozen=True)
class Tick:
    """After each step: how many are done, the loss of this one and its mean over the latest ones, seconds gone and left."""

    step: int
    steps: int
    loss: float
    mean_loss: float
    seconds: float
    left: float


class Checkpoint:
    """The state of a run in a file, whole or not there. key: what the run is; another run's file is refused."""

    def __init__(self, path: Path, key: str):
        self.path, self.key = path, key
        self.saved = time.perf_counter()

    def load(self) -> dict | None:
        """The state, or None where there is no file. Raises EdgecError EC1001 for one of another run, EC1003."""
        if not self.path.exists():
            return None
        try:
            found = torch.load(self.path, weights_only=True)
            ours = found["key"] == self.key
        except Exception as error:
            raise EdgecError("EC1003", f"it is no whole checkpoint ({type(error).__name__})", str(self.path),
                             "Delete it to start anew") from None  # fmt: skip
        if not ours:
            raise EdgecError("EC1001", "the checkpoint is of a run with other models, data or options", str(self.path),
                             "Delete it to start anew, or give the options of that run")  # fmt: skip
        return found

    def save(self, state: dict) -> None:
        write_whole(state | {"key": self.key}, self.path)
        self.saved = time.perf_counter()

    def due(self) -> bool:
        return time.perf_counter() - self.saved > EVERY

    def remove(self) -> None:
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)


def write_whole(state: dict, path: Path) -> None:
    """torch.save to a file that is whole or not there. Raises EdgecError EC1003."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        torch.save(state, temporary)
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        raise EdgecError(
            "EC1003", f"it cannot be written ({error})", str(path), "Free some space, or choose another folder"
        ) from None
    finally:
        temporary.unlink(missing_ok=True)


class Carried(Protocol):
    def state(self) -> dict: ...

    def restore(self, state: dict) -> None: ...


def order(batches: int, seed: int, at: int) -> int:
    """The batch that is `at` in turn: each epoch goes over all of them, in an order of its own."""
    epoch, place = divmod(at, batches)
    return int(np.random.default_rng((seed, epoch)).permutation(batches)[place])


def rate(done: float) -> float:
    """The share of the peak learning rate, `done` of the way: up in a line, down along a cosine."""
    if done < WARMUP:
        return done / WARMUP
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (done - WARMUP) / (1 - WARMUP))))


def fit(
    groups: Sequence[dict],
    loss_of: Callable[[int], torch.Tensor],
    batches: int,
    plan: Plan,
    tick: Callable[[Tick], None] = lambda tick: None,
    checkpoint: Checkpoint | None = None,
    carried: Sequence[Carried] = (),
) -> list[float]:
    """Trains the parameters and returns the loss of each step.

    groups: AdamW's; "scale" of a group multiplies the learning rate. loss_of(number of the batch). carried: what else the
    loss depends on from step to step. An interrupt leaves a checkpoint. Raises EdgecError EC1303 where the loss or a
    gradient is not finite.
    """
    plan.check()
    torch.manual_seed(plan.seed)
    optimizer = torch.optim.AdamW(
        [{"weight_decay": plan.decay, "scale": 1.0} | g for g in groups if g["params"]], lr=plan.lr, fused=True
    )
    parameters = [p for g in optimizer.param_groups for p in g["params"]]
    history: list[float] = []
    before = 0.0
    if checkpoint is not None and (state := checkpoint.load()) is not None:
        history, before = list(state["history"]), state["seconds"]
        optimizer.load_state_dict(state["optimizer"])
        with torch.no_grad():
            for p, value in zip(parameters, state["parameters"], strict=True):
                p.copy_(value)
        for thing, value in zip(carried, state["carried"], strict=True):
            thing.restore(value)
    start, first, whole = time.perf_counter() - before, len(history), True

    def now() -> dict:
        values = [p.detach().clone() for p in parameters]
        found = {"history": history, "seconds": time.perf_counter() - start, "parameters": values}
        return found | {"optimizer": optimizer.state_dict(), "carried": [c.state() for c in carried]}

    try:
        while len(history) < plan.steps:
            step, gone = len(history), time.perf_counter() - start
            limit = math.inf if plan.minutes is None else plan.minutes * 60
            if gone >= limit:
                break
            done = max((step + 0.5) / plan.steps, gone / limit)
            for group in optimizer.param_groups:
                group["lr"] = plan.lr * group["scale"] * rate(done)
            optimizer.zero_grad(set_to_none=True)
            total = 0.0
            for i in range(plan.accumulate):
                loss = loss_of(order(batches, plan.seed, step * plan.accumulate + i)) / plan.accumulate
                total += _finite(loss, step).item()
                loss.backward()
            _finite(torch.nn.utils.clip_grad_norm_(parameters, CLIP), step)
            whole = False  # an interrupt from here on finds half a step
            optimizer.step()
            history.append(total)
            whole = True
            gone = time.perf_counter() - start
            each = (gone - before) / (len(history) - first)
            left = min((plan.steps - len(history)) * each, max(0.0, limit - gone))
            tick(Tick(len(history), plan.steps, total, float(np.mean(history[-20:])), gone, left))
            if checkpoint is not None and checkpoint.due():
                checkpoint.save(now())
    except KeyboardInterrupt:
        if checkpoint is not None and history and whole:
            checkpoint.save(now())
        raise
    return history


def _finite(value: torch.Tensor, step: int) -> torch.Tensor:
    if not torch.isfinite(value):
        raise EdgecError("EC1303", f"the loss or its gradient is not finite at step {step + 1}", None,
                         "Use a smaller --lr, and check that model and data hold finite numbers")  # fmt: skip
    return value
