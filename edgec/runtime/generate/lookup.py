"""Speculative decoding by prompt look-up: what followed the last tokens when they stood there before (Saxena 2023)."""

from __future__ import annotations

from collections.abc import Iterable

DRAFTS = (1, 2, 3, 5, 7)  # lengths that are tried: few, so that few batch shapes are met
GAIN = 1.05  # a draft must promise this much more tokens a second
PRIOR_COST = 0.3  # a further position's share of a step's time before any was measured


class PromptLookup:
    """An index of one sequence's n-grams, longest first."""

    SIZES = (4, 3, 2)

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.followed: tuple[dict, ...] = tuple({} for _ in self.SIZES)
        self.start: int | None = None  # where what followed begins

    def extend(self, tokens: Iterable[int]) -> None:
        for token in tokens:
            self.tokens.append(token)
            end = len(self.tokens)
            self.start = None
            for size, followed in zip(self.SIZES, self.followed):
                if end >= size:
                    gram = tuple(self.tokens[end - size :])
                    if self.start is None:
                        self.start = followed.get(gram)
                    followed[gram] = end

    def draft(self, most: int) -> list[int]:
        """Up to `most` tokens that may come next."""
        return [] if self.start is None else self.tokens[self.start : self.start + most]


class Pace:
    """How long a step over n positions of one row takes: running means, in seconds."""

    def __init__(self) -> None:
        self.seconds: dict[int, float] = {}

    def add(self, positions: int, seconds: float) -> None:
        old = self.seconds.get(positions)
        self.seconds[positions] = seconds if old is None else 0.8 * old + 0.2 * min(seconds, 4 * old)

    def cost(self, positions: int) -> float:
        """Relative to a step over one position."""
        one = self.seconds.get(1)
        if one is None:
            return float("inf") if positions > 1 else 1.0
        here = self.seconds.get(positions)
        return here / one if here is not None else 1 + PRIOR_COST * (positions - 1)

    def draft_length(self, acceptance: float, most: int) -> int:
        """The draft length that gives most tokens a second, 0 where none beats doing without."""
        best, length = GAIN, 0
        for drafted in DRAFTS:
            if drafted > most:
                break
            tokens = sum(acceptance**i for i in range(drafted + 1))
            if (rate := tokens / self.cost(drafted + 1)) > best:
                best, length = rate, drafted
        return length


class Acceptance:
    """The share of looked-up tokens that came true. It is learnt from every step, also those that ran no draft."""

    def __init__(self) -> None:
        self.share = 0.5

    def add(self, hit: bool) -> None:
        self.share += 0.1 * (hit - self.share)
