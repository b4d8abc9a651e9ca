"""Boolean formulas over comparisons of integer polynomials: what the elements of an attention mask come down to.

A formula is True, False, ("ge", e) for e >= 0, ("eq", e), ("ne", e), ("leaf", name) and ("unleaf", name) for a bool
that is not known, ("and", frozenset of formulas) or ("or", frozenset). Symbols whose name starts with LEAF may be
negative; all others (sizes, indices) are at least 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from edgec.ir.dims import Dim, Expr, is_ge, symbols_of

Formula = Any
LEAF = "\0"
ROUNDS = 8


def sure(e: Dim) -> bool:
    """Whether e >= 0 is known."""
    if any(s.startswith(LEAF) for s in symbols_of(e)):
        return False
    return is_ge(e, 0) is True


def at_least_zero(e: Dim) -> Formula:
    if isinstance(e, int):
        return e >= 0
    if sure(e):
        return True
    return False if sure(-e - 1) else ("ge", e)


def zero(e: Dim) -> Formula:
    if isinstance(e, int):
        return e == 0
    return False if sure(e - 1) or sure(-e - 1) else ("eq", _signed(e))


def _signed(e: Expr) -> Dim:
    """One of e and -e, the same for both."""
    return e if e.terms[0][1] > 0 else -e


def negated(f: Formula) -> Formula:
    if isinstance(f, bool):
        return not f
    kind, x = f
    if kind == "ge":
        return at_least_zero(-x - 1)
    swap = {"eq": "ne", "ne": "eq", "leaf": "unleaf", "unleaf": "leaf"}
    if kind in swap:
        return (swap[kind], x)
    return (any_of if kind == "and" else all_of)(map(negated, x))


def implies(f: Formula, g: Formula) -> bool:
    """Whether one comparison is known to imply another."""
    if f == g:
        return True
    if f[0] == "ge" and g[0] == "ge":
        return sure(g[1] - f[1])
    if f[0] == "eq" and g[0] == "ge":
        return sure(g[1] - f[1]) or sure(g[1] + f[1])
    return f[0] == "ge" and g[0] == "ne" and (sure(g[1] - f[1] - 1) or sure(-g[1] - f[1] - 1))


def _atomic(f: Formula) -> bool:
    return f[0] not in ("and", "or")


def all_of(formulas: Iterable[Formula]) -> Formula:
    return _joined("and", formulas)


def any_of(formulas: Iterable[Formula]) -> Formula:
    return _joined("or", formulas)


def _joined(kind: str, formulas: Iterable[Formula]) -> Formula:
    absorbing = kind == "or"  # what decides it alone
    parts: set[Formula] = set()
    for f in formulas:
        if f is absorbing:
            return absorbing
        if isinstance(f, bool):
            continue
        parts |= f[1] if f[0] == kind else {f}
    for f in list(parts):
        if not _atomic(f):
            continue
        if negated(f) in parts:
            return absorbing
        others = [g for g in parts if g != f and _atomic(g)]
        if any(implies(g, f) if kind == "and" else implies(f, g) for g in others):
            parts.discard(f)
    atoms, nested = [f for f in parts if _atomic(f)], [f for f in parts if not _atomic(f)]
    simpler = [_under(f, atoms, kind) for f in nested]
    if simpler != nested:
        return _joined(kind, (*atoms, *simpler))
    if not parts:
        return not absorbing
    return next(iter(parts)) if len(parts) == 1 else (kind, frozenset(parts))


def _under(f: Formula, atoms: list[Formula], kind: str) -> Formula:
    """A part of a conjunction where its comparisons hold; of a disjunction, where they don't."""
    for atom in atoms:
        f = given(f, atom if kind == "and" else negated(atom))
    return f


def given(f: Formula, fact: Formula) -> Formula:
    """f where the comparison `fact` holds."""
    if isinstance(f, bool):
        return f
    if not _atomic(f):
        return _joined(f[0], (given(g, fact) for g in f[1]))
    if implies(fact, f):
        return True
    other = negated(f)
    return False if not isinstance(other, bool) and implies(fact, other) else f


def factors(f: Formula) -> list[Formula]:
    """Formulas whose conjunction is f, each simplified by the others."""
    for _ in range(ROUNDS):
        parts = _split(f)
        new: list[Formula] = []
        for i, p in enumerate(parts):
            for fact in (*new, *parts[i + 1 :]):
                p = given(p, fact) if not isinstance(fact, bool) and _atomic(fact) else p
            new.append(p)
        joined = all_of(new)
        if joined == f:
            break
        f = joined
    return [] if f is True else _split(f)


def _split(f: Formula) -> list[Formula]:
    """The parts of a conjunction; of a disjunction of conjunctions, the parts that all have are drawn out."""
    if isinstance(f, bool):
        return [f]
    if f[0] == "and":
        return sorted(f[1], key=repr)
    if f[0] == "or":
        sides = [g[1] if g[0] == "and" else frozenset([g]) for g in f[1]]
        common = frozenset.intersection(*sides)
        if common:
            return [*sorted(common, key=repr), any_of(all_of(s - common) for s in sides)]
    return [f]


def symbols(f: Formula) -> set[str]:
    """The symbols and leaves that a formula mentions."""
    if isinstance(f, bool):
        return set()
    if f[0] in ("leaf", "unleaf"):
        return {f[1]}
    return symbols_of(f[1]) if _atomic(f) else set().union(*map(symbols, f[1]))


def fold(f: Formula, atom: Callable[[Formula], Any], join: Callable[[str, list], Any]) -> Any:
    """Bottom-up: atom(comparison or bool), join("and" | "or", values)."""
    if isinstance(f, bool) or _atomic(f):
        return atom(f)
    return join(f[0], [fold(g, atom, join) for g in sorted(f[1], key=repr)])
