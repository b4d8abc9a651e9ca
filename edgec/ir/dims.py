"""Symbolic dimensions: integer polynomials over symbols and opaque calls, kept in one normal form.

A `Dim` is an int or an `Expr`. Two dims are known equal exactly when they compare equal. Symbols stand for
sizes, so they are assumed to be at least 0.

    s = symbol("seq"); (s * 4 + 8) // 4 == s + 2
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import TypeAlias, Union

Dim: TypeAlias = Union[int, "Expr"]
CALLS = ("floordiv", "mod", "max0", "bcast")  # max0(x) = max(x, 0): min and max are written with it


class Atom:
    """A symbol (op "sym", args (name,)) or an opaque call on dims."""

    __slots__ = ("args", "key", "op")

    def __init__(self, op: str, args: tuple):
        self.op, self.args = op, args
        self.key = (op, tuple(a if isinstance(a, str) else _key(a) for a in args))

    def __eq__(self, other):
        return isinstance(other, Atom) and self.key == other.key

    def __hash__(self):
        return hash(self.key)


class Expr:
    """A sum of integer multiples of products of atoms; never a plain integer."""

    __slots__ = ("_hash", "terms")

    def __init__(self, terms: tuple):
        self.terms = terms  # ((atoms sorted by key), coefficient) sorted, highest degree first
        self._hash = hash(terms)

    def __eq__(self, other):
        return isinstance(other, Expr) and self._hash == other._hash and self.terms == other.terms

    def __hash__(self):
        return self._hash

    def __add__(self, other):
        return _from_dict(_accumulate(_terms(self), _terms(other), 1))

    __radd__ = __add__

    def __sub__(self, other):
        return _from_dict(_accumulate(_terms(self), _terms(other), -1))

    def __rsub__(self, other):
        return _from_dict(_accumulate(_terms(other), _terms(self), -1))

    def __neg__(self):
        return 0 - self

    def __mul__(self, other):
        out: dict = {}
        for m1, c1 in _terms(self):
            for m2, c2 in _terms(other):
                m = tuple(sorted(m1 + m2, key=lambda a: a.key))
                out[m] = out.get(m, 0) + c1 * c2
        return _from_dict(out)

    __rmul__ = __mul__

    def __floordiv__(self, other):
        return floordiv(self, other)

    def __rfloordiv__(self, other):
        return floordiv(other, self)

    def __mod__(self, other):
        return self - other * floordiv(self, other)

    def __rmod__(self, other):
        return other - self * floordiv(other, self)

    def __bool__(self):
        raise TypeError(f"the truth of the symbolic dim {self} is not known; use is_ge or ==")

    def __repr__(self):
        return format_dim(self)


def _terms(d: Dim) -> Iterable:
    if isinstance(d, Expr):
        return d.terms
    return (((), int(d)),) if d else ()


def _key(d: Dim):
    return tuple((tuple(a.key for a in m), c) for m, c in _terms(d))


def _order(m: tuple):
    return (-len(m), tuple(a.key for a in m))


def _accumulate(a, b, sign) -> dict:
    out = dict(a)
    for m, c in b:
        out[m] = out.get(m, 0) + sign * c
    return out


def _from_dict(terms: Mapping) -> Dim:
    kept = tuple(sorted(((m, c) for m, c in terms.items() if c), key=lambda t: _order(t[0])))
    if not kept:
        return 0
    if len(kept) == 1 and not kept[0][0]:
        return kept[0][1]
    return Expr(kept)


def symbol(name: str) -> Expr:
    return Expr((((Atom("sym", (name,)),), 1),))


def _call(op: str, *args: Dim) -> Expr:
    return Expr((((Atom(op, args),), 1),))


def symbol_name(d: Dim) -> str | None:
    """The symbol's name if the dim is just one symbol."""
    if isinstance(d, Expr) and len(d.terms) == 1:
        m, c = d.terms[0]
        if c == 1 and len(m) == 1 and m[0].op == "sym":
            return m[0].args[0]
    return None


def _divide_exactly(a: Dim, b: Dim) -> Dim | None:
    """The polynomial quotient if b divides a, by long division."""
    if isinstance(b, int) and b == 0:
        return None
    quotient: Dim = 0
    lead_m, lead_c = next(iter(_terms(b)))
    for _ in range(64):
        if isinstance(a, int) and a == 0:
            return quotient
        m, c = next(iter(_terms(a)))
        rest = list(m)
        for atom in lead_m:
            if atom not in rest:
                return None
            rest.remove(atom)
        if c % lead_c:
            return None
        term = _from_dict({tuple(rest): c // lead_c})
        quotient, a = quotient + term, a - term * b
    return None


def floordiv(a: Dim, b: Dim) -> Dim:
    """Floor division, as Python's; b is assumed positive when it is symbolic."""
    if isinstance(a, int) and isinstance(b, int):
        return a // b
    if isinstance(b, int) and b == 1:
        return a
    exact = _divide_exactly(a, b)
    if exact is not None:
        return exact
    if isinstance(b, int) and b > 0:
        whole = _from_dict({m: c // b for m, c in _terms(a)})
        rest = a - whole * b
        if isinstance(rest, int):
            return whole + rest // b
        m, c = rest.terms[0]
        if len(rest.terms) == 1 and c == 1 and len(m) == 1 and m[0].op == "floordiv" and isinstance(m[0].args[1], int):
            return whole + floordiv(m[0].args[0], m[0].args[1] * b)
        return whole + _call("floordiv", rest, b)
    return _call("floordiv", a, b)


def ceildiv(a: Dim, b: Dim) -> Dim:
    return -floordiv(-a, b)


def mod(a: Dim, b: Dim) -> Dim:
    return a - b * floordiv(a, b)


def is_ge(a: Dim, b: Dim) -> bool | None:
    """Whether a >= b for all symbols >= 0: True, False, or None where it isn't known."""
    d = a - b
    if isinstance(d, int):
        return d >= 0
    if all(c > 0 and all(_nonnegative(x) for x in m) for m, c in d.terms):
        return True
    if all(c < 0 and all(_nonnegative(x) for x in m) for m, c in d.terms if m) and dict(d.terms).get((), 0) < 0:
        return False
    return None


def _nonnegative(atom: Atom) -> bool:
    return atom.op in ("sym", "max0", "bcast") or (atom.op == "floordiv" and is_ge(atom.args[0], 0) is True)


def max_dim(a: Dim, b: Dim) -> Dim:
    known = is_ge(a, b)
    if known is not None:
        return a if known else b
    if is_ge(b, a):
        return b
    d = a - b
    assert isinstance(d, Expr)
    # max(a, b) = b + max0(a - b), with the sign chosen so that the highest term is positive
    return b + _call("max0", d) if d.terms[0][1] > 0 else a + _call("max0", -d)


def min_dim(a: Dim, b: Dim) -> Dim:
    return a + b - max_dim(a, b)


def bcast(a: Dim, b: Dim) -> Dim:
    """The size of two broadcast dims: a unless it is 1, then b. Symmetric for dims that do broadcast."""
    if a == b or (isinstance(b, int) and b == 1):
        return a
    if isinstance(a, int):
        return b if a == 1 else a
    if isinstance(b, int):
        return b
    parts: dict = {}
    for d in (a, b):
        m, c = d.terms[0]
        nested = len(d.terms) == 1 and c == 1 and len(m) == 1 and m[0].op == "bcast"
        for p in m[0].args if nested else (d,):
            parts[_key(p)] = p
    args = tuple(parts[k] for k in sorted(parts))
    return args[0] if len(args) == 1 else _call("bcast", *args)


def product(dims: Iterable[Dim]) -> Dim:
    out: Dim = 1
    for d in dims:
        out = out * d
    return out


def symbols_of(d: Dim) -> set[str]:
    found: set[str] = set()
    for m, _ in _terms(d):
        for atom in m:
            found.update(atom.args if atom.op == "sym" else set().union(*map(symbols_of, atom.args)))
    return found


def substitute(d: Dim, values: Mapping[str, Dim]) -> Dim:
    """The dim with symbols replaced; an int if none is left."""
    if isinstance(d, int):
        return d
    out: Dim = 0
    for m, c in d.terms:
        term: Dim = c
        for atom in m:
            term = term * _substitute_atom(atom, values)
        out = out + term
    return out


def _substitute_atom(atom: Atom, values: Mapping[str, Dim]) -> Dim:
    if atom.op == "sym":
        value = values.get(atom.args[0])
        return symbol(atom.args[0]) if value is None else value
    args = [substitute(a, values) for a in atom.args]
    if atom.op == "floordiv":
        return floordiv(args[0], args[1])
    if atom.op == "max0":
        return max_dim(args[0], 0)
    out = args[0]
    for a in args[1:]:
        out = bcast(out, a)
    return out


def evaluate(d: Dim, env: Mapping[str, int]) -> int:
    """The dim's value. KeyError names a symbol that env lacks."""
    if isinstance(d, int):
        return d
    for name in symbols_of(d):
        env[name]
    value = substitute(d, env)
    assert isinstance(value, int)
    return value


def postfix(d: Dim, sym: Callable[[str], int]) -> list[int]:
    """The dim as the words of the plan's expression program (ARCHITECTURE.md, "Plan")."""
    words: list[int] = []

    def emit(e: Dim):
        if isinstance(e, int):
            words.extend((0, e))
            return
        for i, (m, c) in enumerate(e.terms):
            if c != 1 or not m:
                words.extend((0, c))
            for j, atom in enumerate(m):
                emit_atom(atom)
                if j or c != 1:
                    words.append(5)
            if i:
                words.append(3)

    def emit_atom(atom: Atom):
        if atom.op == "sym":
            words.extend((1, sym(atom.args[0])))
        elif atom.op == "max0":
            emit(atom.args[0])
            words.extend((0, 0, 9))
        else:
            for i, a in enumerate(atom.args):
                emit(a)
                if i:
                    words.append(6 if atom.op == "floordiv" else 10)

    emit(d)
    return words


_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*$")


def format_dim(d: Dim) -> str:
    if isinstance(d, int):
        return str(d)
    out = ""
    for m, c in d.terms:
        factors = [_format_atom(a) for a in m]
        if abs(c) != 1 or not m:
            factors.insert(0, str(abs(c)))
        sign = "-" if c < 0 else "+"
        out += (f" {sign} " if out else "-" if c < 0 else "") + "*".join(factors)
    return out


def _format_atom(a: Atom) -> str:
    if a.op == "sym":
        name = a.args[0]
        return name if _NAME.match(name) and name not in CALLS else "`" + name.replace("`", "'") + "`"
    return f"{a.op}({', '.join(map(format_dim, a.args))})"


_TOKEN = re.compile(r"\s*(\d+|`[^`]*`|[A-Za-z_][A-Za-z0-9_.]*|//|[-+*(),%])")


@lru_cache(4096)
def parse_dim(text: str) -> Dim:
    """Reads what format_dim writes, and // and %. ValueError says what it could not read."""
    tokens, pos = [], 0
    text = text.strip()
    while pos < len(text):
        match = _TOKEN.match(text, pos)
        if not match:
            raise ValueError(f"cannot read the dim {text!r} at {text[pos:]!r}")
        tokens.append(match.group(1))
        pos = match.end()
    tokens.append("")
    at = 0

    def take(expected=None):
        nonlocal at
        token = tokens[at]
        if expected is not None and token != expected:
            raise ValueError(f"cannot read the dim {text!r}: expected {expected!r}, found {token!r}")
        at += 1
        return token

    def total() -> Dim:
        value = -factors() if tokens[at] == "-" and take() else factors()
        while tokens[at] in ("+", "-"):
            value = value + factors() if take() == "+" else value - factors()
        return value

    def factors() -> Dim:
        value = primary()
        while tokens[at] in ("*", "//", "%"):
            op, right = take(), primary()
            value = value * right if op == "*" else floordiv(value, right) if op == "//" else mod(value, right)
        return value

    def primary() -> Dim:
        token = take()
        if token == "(":
            value = total()
            take(")")
            return value
        if token.isdigit():
            return int(token)
        if token[:1] == "`":
            return symbol(token[1:-1])
        if not _NAME.match(token):
            raise ValueError(f"cannot read the dim {text!r} at {token!r}")
        if token in CALLS and tokens[at] == "(":
            take()
            args = [total()]
            while tokens[at] == ",":
                take()
                args.append(total())
            take(")")
            if len(args) < (1 if token == "max0" else 2):
                raise ValueError(f"cannot read the dim {text!r}: {token} needs more arguments")
            if token == "max0":
                return max_dim(args[0], 0)
            out = args[0]
            for a in args[1:]:
                out = {"floordiv": floordiv, "mod": mod, "bcast": bcast}[token](out, a)
            return out
        return symbol(token)

    value = total()
    take("")
    return value
