"""From logits to a token: greedy, or drawn after penalties, temperature, top-k, top-p and min-p (Holtzman 2020)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from edgec.errors import EdgecError

# exp(-40) of the most likely token's share is below float64's rounding of the sum of the rest
NEGLIGIBLE = 40.0


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    temperature 0: the most likely one, whatever top_k, top_p and min_p say. top_k 0, top_p 1, min_p 0: off.
    repetition_penalty (Keskar 2019) divides positive and multiplies negative logits of tokens that were there;
    presence_penalty and frequency_penalty are subtracted from those of tokens generated, the latter for each time.
    seed: the same seed gives the same choices, in whatever batch; None: another one each time.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None

    def check(self, vocab: int) -> None:
        """Raises EdgecError EC1001 where a value is out of its range."""
        ranges = {
            "temperature": (0.0, 100.0), "top_p": (0.0, 1.0), "min_p": (0.0, 1.0), "repetition_penalty": (0.01, 100.0),
            "presence_penalty": (-100.0, 100.0), "frequency_penalty": (-100.0, 100.0),
        }  # fmt: skip
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            if not _is_number(value) or not low <= value <= high:
                raise EdgecError("EC1001", f"{value!r} is no number from {low:g} to {high:g}", name)
        if self.top_p == 0:
            raise EdgecError("EC1001", "0 leaves no token", "top_p", "Use temperature=0 for the most likely token")
        if not _is_int(self.top_k) or self.top_k < 0:
            raise EdgecError("EC1001", f"{self.top_k!r} is no number of tokens", "top_k", "0 switches it off")
        if self.seed is not None and not (_is_int(self.seed) and abs(self.seed) < 1 << 64):
            raise EdgecError("EC1001", f"{self.seed!r} is no integer of 64 bits", "seed")
        for token, bias in self.logit_bias.items():
            if not _is_int(token) or not 0 <= token < vocab or not _is_number(bias) or abs(bias) > 1000:
                raise EdgecError(
                    "EC1001",
                    f"{token!r}: {bias!r} is no token and its bias",
                    "logit_bias",
                    "Pass {token id: number from -1000 to 1000}",
                )


def _is_int(value: object) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool) and math.isfinite(value)


class Sampler:
    """Chooses the tokens of one sequence, one after the other; each choice by chance takes one random number."""

    def __init__(self, sampling: Sampling, prompt: Sequence[int], vocab: int) -> None:
        sampling.check(vocab)
        self.sampling = s = sampling
        self.greedy = s.temperature == 0 or s.top_k == 1
        self.penalised = s.repetition_penalty != 1.0
        self.counted = s.presence_penalty != 0 or s.frequency_penalty != 0
        self.seen = dict.fromkeys(prompt) if self.penalised else {}
        self.counts: dict[int, int] = {}
        self.bias = (np.fromiter(s.logit_bias, np.int64), np.fromiter(s.logit_bias.values(), np.float32))
        self.random = None
        if not self.greedy:
            seed = None if s.seed is None else int(s.seed) % (1 << 64)
            self.random = np.random.Generator(np.random.Philox(seed))

    def choose(self, logits: np.ndarray, allow: Callable[[np.ndarray], None] | None = None) -> int:
        """The next token after float32 [vocab], which stays as it is. `allow` sets what may not come to -inf.

        Raises EdgecError EC1703 where the logits are no numbers.
        """
        if allow is not None or self.penalised or self.counted or self.bias[0].size:
            logits = self._adjusted(logits)
            if allow is not None:
                _check(logits, int(logits.argmax()))
                allow(logits)
        best = int(logits.argmax())
        _check(logits, best)
        token = best if self.greedy else self._draw(logits, best)
        if self.penalised:
            self.seen[token] = None
        if self.counted:
            self.counts[token] = self.counts.get(token, 0) + 1
        return token

    def _adjusted(self, logits: np.ndarray) -> np.ndarray:
        s, logits = self.sampling, logits.copy()
        if self.penalised:
            index = np.fromiter(self.seen, np.int64, len(self.seen))
            values = logits[index]
            logits[index] = np.where(values > 0, values / s.repetition_penalty, values * s.repetition_penalty)
        if self.counts:
            index = np.fromiter(self.counts, np.int64, len(self.counts))
            times = np.fromiter(self.counts.values(), np.float32, len(self.counts))
            logits[index] -= s.presence_penalty + s.frequency_penalty * times
        if self.bias[0].size:
            logits[self.bias[0]] += self.bias[1]
        return logits

    def _draw(self, logits: np.ndarray, best: int) -> int:
        assert self.random is not None
        index, weights = candidates(logits, self.sampling, best)
        sums = np.cumsum(weights)
        at = int(np.searchsorted(sums, self.random.random() * sums[-1], side="right"))
        return int(index[min(at, len(index) - 1)])


def _check(logits: np.ndarray, best: int) -> None:
    # argmax stops at the first NaN, so looking at one number finds it
    if not np.isfinite(logits[best]):
        raise EdgecError(
            "EC1703",
            "the model's logits are not numbers",
            hint="Build it with --weights int8 or fp32, and check its input",
        )


def candidates(logits: np.ndarray, s: Sampling, best: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The tokens that may come, and their float64 weights (not normalised)."""
    best = int(logits.argmax()) if best is None else best
    reach = NEGLIGIBLE * s.temperature
    if s.min_p > 0:
        reach = min(reach, -math.log(s.min_p) * s.temperature * (1 + 1e-12))
    index = np.flatnonzero(logits >= logits[best] - np.float32(reach))
    if 0 < s.top_k < index.size:
        # of equal logits the lower tokens come first
        index = np.sort(index[np.argsort(-logits[index], kind="stable")[: s.top_k]])
    weights = np.exp((logits[index].astype(np.float64) - float(logits[best])) / s.temperature)
    if s.top_p < 1:
        order = np.argsort(-weights, kind="stable")
        sums = np.cumsum(weights[order])
        kept = order[: int(np.searchsorted(sums, s.top_p * sums[-1])) + 1]
        index, weights = index[kept], weights[kept]
    return index, weights


def log_probabilities(logits: np.ndarray, token: int, top: int) -> tuple[float, tuple[tuple[int, float], ...]]:
    """The token's log probability under the model, and the `top` likeliest tokens with theirs."""
    wide = logits.astype(np.float64)
    wide -= wide.max()
    wide -= math.log(np.exp(wide).sum())
    if not top:
        return float(wide[token]), ()
    top = min(top, wide.size)
    best = np.argpartition(-wide, top - 1)[:top]
    best = best[np.argsort(-wide[best], kind="stable")]
    return float(wide[token]), tuple((int(t), float(wide[t])) for t in best)
