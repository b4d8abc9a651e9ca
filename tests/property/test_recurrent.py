"""lstm, gru and rnn against the IR's numpy reference: directions, lengths, peepholes, every activation, tails of 8."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgec import EdgecError, _core
from edgec.ir.ops.recurrent import FUNCTIONS, GATES
from edgec.ir.ops.registry import OPS

DEFAULTS = {"lstm": ("sigmoid", "tanh", "tanh"), "gru": ("sigmoid", "tanh"), "rnn": ("tanh",)}
EXTRA = {"lstm": ("input_forget", "quantize_state"), "gru": ("linear_before_reset",), "rnn": ()}


def compute(op, operands, attrs, extra, threads=1):
    x, w = operands[:2]
    dirs, hidden, batch = w.shape[0], attrs["hidden"], x.shape[1]
    outs = [np.full((x.shape[0], dirs, batch, hidden), 77, np.float32)]
    outs += [np.full((dirs, batch, hidden), 77, np.float32) for _ in range(2 if op == "lstm" else 1)]
    functions = zip(attrs["activations"], attrs["alphas"], attrs["betas"], strict=True)
    text = ";".join(f"{name},{alpha!r},{beta!r}" for name, alpha, beta in functions)
    params = (hidden, attrs["direction"], text, attrs["clip"], *(int(name in extra) for name in EXTRA[op]))
    _core.call_builtin(op, *operands, *outs, *params, threads=threads)
    return outs


def make(rng, op, steps, batch, size, hidden, direction, activations=None, options="bhcpl", clip=0.0):
    """Operands (absent ones None) and attributes; `options`: bias, h0, c0, peephole, lengths."""
    dirs, gates = 2 if direction == "bidirectional" else 1, GATES[op]

    def normal(*shape):
        return (rng.standard_normal(shape) * 0.5).astype(np.float32)

    operands = [normal(steps, batch, size), normal(dirs, gates * hidden, size), normal(dirs, gates * hidden, hidden)]
    operands.append(normal(dirs, 2 * gates * hidden) if "b" in options else None)
    operands.append(rng.integers(0, steps + 1, batch).astype(np.int32) if "l" in options else None)
    operands.append(normal(dirs, batch, hidden) if "h" in options else None)
    if op == "lstm":
        operands.append(normal(dirs, batch, hidden) if "c" in options else None)
        operands.append(normal(dirs, 3 * hidden) if "p" in options else None)
    names = activations or DEFAULTS[op] * dirs
    attrs = {"hidden": hidden, "direction": direction, "activations": names, "clip": clip}
    attrs |= {"alphas": [0.3 + 0.1 * i for i in range(len(names))], "betas": [0.5] * len(names)}
    return operands, attrs


def check(op, operands, attrs, extra, threads, bound=2e-5):
    named = {name: name in extra for name in EXTRA[op]}
    with np.errstate(all="ignore"):
        want = OPS[op].reference(*operands, **attrs, **named)
    for g, w in zip(compute(op, operands, attrs, extra, threads), want, strict=True):
        np.testing.assert_allclose(g, w, rtol=0, atol=bound * max(1.0, float(np.abs(w).max(initial=0))))


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(("lstm", "gru", "rnn")),
    st.integers(0, 6),
    st.integers(0, 5),
    st.integers(1, 20),
    st.integers(1, 20),
    st.sampled_from(("forward", "reverse", "bidirectional")),
    st.sets(st.sampled_from("bhcpl")),
    st.sampled_from((0.0, 0.0, 0.7)),
    st.sampled_from(((), ("input_forget", "linear_before_reset"))),
    st.randoms(use_true_random=False),
    st.integers(1, 3),
)
def test_against_the_reference(op, steps, batch, size, hidden, direction, options, clip, extra, random, threads):
    rng = np.random.default_rng(random.randrange(2**32))
    operands, attrs = make(rng, op, steps, batch, size, hidden, direction, options=options, clip=clip)
    check(op, operands, attrs, extra, threads)


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
@pytest.mark.parametrize("op", ["lstm", "gru", "rnn"])
def test_every_activation(op, name):
    rng = np.random.default_rng(1)
    names = (name,) * len(DEFAULTS[op])
    operands, attrs = make(rng, op, 3, 2, 5, 11, "forward", activations=names, options="b")
    check(op, operands, attrs, (), 1)


@pytest.mark.parametrize("op", ["lstm", "gru", "rnn"])
@pytest.mark.parametrize(
    ("batch", "hidden", "direction"), [(1, 320, "forward"), (1, 256, "bidirectional"), (5, 96, "reverse")]
)
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_large_enough_to_share(op, batch, hidden, direction, threads):
    rng = np.random.default_rng(2)
    operands, attrs = make(rng, op, 7, batch, 40, hidden, direction)
    for i in (1, 2):
        operands[i] *= 0.2
    check(op, operands, attrs, (), threads)


@pytest.mark.parametrize("direction", ["forward", "bidirectional"])
def test_quantized_state(direction):
    """One rounding that falls the other way moves h by a 255th of its range."""
    operands, attrs = make(np.random.default_rng(5), "lstm", 6, 3, 5, 12, direction)
    check("lstm", operands, attrs, ("quantize_state",), 2, bound=1e-2)


@pytest.mark.parametrize("length", [-1, 4, 2**31 - 1])
def test_a_length_outside_is_an_error(length):
    operands, attrs = make(np.random.default_rng(3), "gru", 3, 2, 4, 4, "forward")
    operands[4][1] = length
    with pytest.raises(EdgecError, match=f"sequence length {length} is outside of 0 to 3"):
        compute("gru", operands, attrs, ())


def test_what_does_not_fit_is_named():
    operands, attrs = make(np.random.default_rng(4), "lstm", 3, 2, 4, 4, "forward")
    for change, words in (
        ({"activations": ("sigmoid", "tanh")}, "malformed"),
        ({"activations": ("sigmoid", "tanh", "swoosh")}, "no activation 'swoosh'"),
        ({"direction": "sideways"}, "no such direction"),
        ({"hidden": 2**40}, "hidden is out of range"),
    ):
        changed = attrs | change
        changed["alphas"] = changed["betas"] = [0.0] * len(changed["activations"])
        text = ";".join(f"{a},0.0,0.0" for a in changed["activations"])
        outs = [np.zeros((3, 1, 2, 4), "f4"), np.zeros((1, 2, 4), "f4"), np.zeros((1, 2, 4), "f4")]
        with pytest.raises(EdgecError, match=words):
            _core.call_builtin("lstm", *operands, *outs, changed["hidden"], changed["direction"], text, 0.0, 0, 0)
    operands[2] = operands[2][:, :, :3].copy()
    with pytest.raises(EdgecError, match="r does not fit"):
        compute("lstm", operands, attrs, ())
