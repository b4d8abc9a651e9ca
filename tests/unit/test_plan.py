import contextlib
import itertools
import struct
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_tools import (
    WEIGHTS,
    Arg,
    Check,
    CheckKind,
    ExprOp,
    Plan,
    PlanMaker,
    Step,
    StepKind,
    Storage,
    Value,
    cache_plan,
    compile_c,
    scale_add_plan,
)

from edgec import EdgecError, _core


@pytest.fixture(scope="module")
def code(tmp_path_factory):
    return compile_c(tmp_path_factory.mktemp("code"))


def weights():
    return np.concatenate([np.zeros(16, np.float32), WEIGHTS])


def test_encoding_round_trips():
    plan = scale_add_plan()
    plan.checks.append(Check(CheckKind.BROADCAST, 0, 0, "naïve ☃"))
    plan.steps.append(Step(StepKind.KERNEL, "k", -1, 0, (Arg.double(0.1), Arg.string("forward"), Arg.imm(-5)), "o"))
    again = Plan.decode(plan.encode())
    assert again == plan
    assert again.encode() == plan.encode()
    assert Plan.decode(cache_plan("i8").encode()) == cache_plan("i8")


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("n", [0, 1, 7, 1000])
def test_runs_calls_temps_aliases_and_constants(code, n, threads):
    session = _core.Session(scale_add_plan().encode(), code, weights(), threads)
    assert session.threads == threads
    x = np.random.default_rng(n).standard_normal((n, 4)).astype(np.float32)
    for _ in range(3):
        out = session.call({"x": x})
        np.testing.assert_array_equal(out["y"], x * np.float32(3) + WEIGHTS[: n * 4].reshape(n, 4))
        np.testing.assert_array_equal(out["z"], x)
        assert not np.shares_memory(out["z"], x)


def test_strided_and_reversed_inputs_are_copied(code):
    session = _core.Session(scale_add_plan().encode(), code, weights(), 1)
    wide = np.arange(80, dtype=np.float32).reshape(10, 8)
    for x in (wide[:, ::2], wide[::-1, :4], np.asfortranarray(wide[:, :4])):
        np.testing.assert_array_equal(session.call({"x": x})["z"], x)


def test_ports_carry_symbols(code):
    session = _core.Session(scale_add_plan().encode(), code, weights(), 1)
    assert session.inputs == [("x", "f32", ("n", 4))]
    assert session.symbols == [("n", 0, 1000)]
    assert session.memory([10]) == {"arena_bytes": 192, "temp_bytes": 192, "scratch_bytes": 64}


@pytest.mark.parametrize(
    ("feeds", "error", "words"),
    [
        ({}, "EC1601", "missing"),
        ({"x": np.zeros((2, 4), np.float32), "q": np.zeros(1)}, "EC1601", "'q'"),
        ({"x": np.zeros((2, 4))}, "EC1602", "float64, expected f32"),
        ({"x": np.zeros((2, 4), ">f4")}, "EC1602", "f32"),
        ({"x": np.zeros((2, 5), np.float32)}, "EC1603", r"shape \(2, 5\), expected \(n, 4\)"),
        ({"x": np.zeros(4, np.float32)}, "EC1603", r"shape \(4,\)"),
        ({"x": np.zeros((1001, 4), np.float32)}, "EC1603", "0 to 1000"),
        ({"x": object()}, "EC1602", "object|no array"),
    ],
)
def test_wrong_inputs_are_named(code, feeds, error, words):
    session = _core.Session(scale_add_plan().encode(), code, weights(), 1)
    with pytest.raises(EdgecError, match=words) as caught:
        session.call(feeds)
    assert caught.value.code == error


def _identity(dtype, shape):
    m = PlanMaker()
    x = m.input("x", dtype, shape)
    m.kernel("copy", Arg.of(x), Arg.of(m.output("y", dtype, shape)))
    return _core.Session(m.plan.encode())


@pytest.mark.parametrize("dtype", ["bool", "i8", "u8", "i16", "u16", "i32", "u32", "i64", "u64", "f16", "f32", "f64"])
def test_every_dtype_goes_in_and_out(dtype):
    kind = {"b": "bool", "i": "int", "u": "uint", "f": "float"}[dtype[0]]
    x = np.arange(6).reshape(2, 3).astype(kind + dtype[1:] if dtype != "bool" else bool)
    y = _identity(dtype, ("n", 3)).call({"x": x})["y"]
    assert y.dtype == x.dtype
    np.testing.assert_array_equal(y, x)


def test_bf16_is_ml_dtypes_or_u16():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    session = _identity("bf16", ("n",))
    x = np.array([1.5, -2.0, np.inf], ml_dtypes.bfloat16)
    for feed in (x, x.view(np.uint16)):
        y = session.call({"x": feed})["y"]
        assert y.dtype == ml_dtypes.bfloat16
        np.testing.assert_array_equal(y, x)


def test_scalars():
    session = _identity("f32", ())
    for x in (np.float32(3), np.array(3, np.float32)):
        y = session.call({"x": x})["y"]
        assert y.shape == () and y == 3


def test_sixty_four_arguments(code):
    m = PlanMaker()
    m.input("x", "f32", (1,))
    y = m.output("y", "i64", ())
    m.call("wide", 1, *(Arg.imm(i * i) for i in range(63)), Arg.of(y))
    session = _core.Session(m.plan.encode(), code)
    assert session.run({"x": np.zeros(1, np.float32)})[0] == sum(i * i * (i + 1) for i in range(63))


def test_branches_run_one_side(code):
    m = PlanMaker()
    x = m.input("x", "f32", (1,))
    y = m.output("y", "f32", (1,))
    flag = m.temp("bool", (), 0, 1, item=1)
    m.call("positive", 1, Arg.of(x), Arg.of(flag))
    m.plan.steps.append(Step(StepKind.JUMP_IF_FALSE, args=(Arg.of(flag), Arg.imm(4))))
    m.call("scale", 1, Arg.of(x), Arg.of(y), Arg.imm(2))
    m.plan.steps.append(Step(StepKind.JUMP, args=(Arg.imm(5),)))
    m.call("scale", 1, Arg.of(x), Arg.of(y), Arg.imm(-1))
    session = _core.Session(m.plan.encode(), code)
    for value, want, ran in ((3.0, 6.0, [0, 1, 2, 3]), (-3.0, 3.0, [0, 1, 4])):
        results, times = session.profile({"x": np.array([value], np.float32)})
        assert results[0][0] == want
        assert [i for i, ns in enumerate(times) if ns >= 0] == ran


def test_a_failing_function_is_reported(code):
    m = PlanMaker()
    m.input("x", "f32", (1,))
    m.call("fails", 1, origin="Conv_9")
    with pytest.raises(EdgecError, match="Conv_9: fails returned 7"):
        _core.Session(m.plan.encode(), code).run({"x": np.zeros(1, np.float32)})


@pytest.mark.parametrize("kind", [CheckKind.EQUAL, CheckKind.AT_LEAST, CheckKind.BROADCAST])
def test_checks_name_the_node_and_the_numbers(kind):
    m = PlanMaker()
    m.input("a", "f32", ("n",))
    m.input("b", "f32", ("m",))
    m.plan.checks.append(Check(kind, m.dim("n"), m.dim("m"), "node Add_3"))
    session = _core.Session(m.plan.encode())
    with pytest.raises(EdgecError, match="EC1604 node Add_3: n is 2 and m is 3"):
        session.run({"a": np.zeros(2, np.float32), "b": np.zeros(3, np.float32)})
    session.run({"a": np.zeros(3, np.float32), "b": np.zeros(3, np.float32)})


def _eval(words, symbols):
    stack = []
    it = iter(words)
    ops = {
        ExprOp.ADD: lambda a, b: a + b,
        ExprOp.SUB: lambda a, b: a - b,
        ExprOp.MUL: lambda a, b: a * b,
        ExprOp.FLOORDIV: lambda a, b: a // b,
        ExprOp.MOD: lambda a, b: a % b,
        ExprOp.MIN: min,
        ExprOp.MAX: max,
        ExprOp.BCAST: lambda a, b: b if a == 1 else a,
        ExprOp.CEILDIV: lambda a, b: -(-a // b),
    }
    for op in it:
        if op == ExprOp.CONST:
            stack.append(next(it))
        elif op == ExprOp.SYMBOL:
            stack.append(symbols[next(it)])
        else:
            b, a = stack.pop(), stack.pop()
            stack.append(ops[op](a, b))
    return stack[0]


leaves = st.one_of(
    st.integers(-7, 7).map(lambda c: (ExprOp.CONST, c)), st.integers(0, 1).map(lambda s: (ExprOp.SYMBOL, s))
)
programs = st.recursive(
    leaves,
    lambda sub: st.tuples(sub, sub, st.sampled_from(list(ExprOp)[3:])).map(lambda t: (*t[0], *t[1], t[2])),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(words=programs, n=st.integers(0, 9), m=st.integers(0, 9))
def test_expressions_agree_with_python(words, n, m):
    maker = PlanMaker()
    maker.input("a", "f32", ("n",))
    maker.input("b", "f32", ("m",))
    y = maker.output("y", "i64", ())
    maker.kernel("fill_int", Arg.of(y), Arg.dim(maker.plan.expr(*words)))
    feeds = {"a": np.zeros(n, np.float32), "b": np.zeros(m, np.float32)}
    session = _core.Session(maker.plan.encode())
    try:
        want = _eval(words, (n, m))
    except ZeroDivisionError:
        with pytest.raises(EdgecError, match="divided by a dim of 0"):
            session.run(feeds)
        return
    assert session.run(feeds)[0] == want


def test_overflow_is_an_error():
    m = PlanMaker()
    m.input("x", "f32", ("n",))
    huge = m.plan.expr(ExprOp.CONST, 2**62, ExprOp.SYMBOL, 0, ExprOp.MUL)
    m.plan.value(Value("f32", (huge,), Storage.TEMP, huge))
    session = _core.Session(m.plan.encode())
    with pytest.raises(EdgecError, match="too large"):
        session.run({"x": np.zeros(1, np.float32)})
    with pytest.raises(EdgecError, match="64 bits"):
        session.run({"x": np.zeros(4, np.float32)})


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 9), st.integers(0, 9)), max_size=12))
def test_arena_keeps_live_values_apart(items):
    """Each temp is filled with its number at its first step and must still hold it at its last."""
    m = PlanMaker()
    m.input("x", "f32", (1,))
    lives = [(size, *sorted((a, b))) for size, a, b in items]
    temps = [m.temp("i64", (size,), 2 * a, 2 * b + 1, item=8) for size, a, b in lives]
    outs = [m.output(f"y{i}", "i64", (size,)) for i, (size, _, _) in enumerate(lives)]
    for time in range(10):
        # Steps of one time share its two numbers' range, so lifetimes below are widened to real step indices.
        for i, (_, first, _) in enumerate(lives):
            if first == time:
                m.kernel("fill_int", Arg.of(temps[i]), Arg.imm(i + 1), origin=f"fill {i}")
        for i, (_, _, last) in enumerate(lives):
            if last == time:
                m.kernel("copy", Arg.of(temps[i]), Arg.of(outs[i]), origin=f"read {i}")
    index = {step.origin: at for at, step in enumerate(m.plan.steps)}
    for i, temp in enumerate(temps):
        m.plan.values[temp].b, m.plan.values[temp].c = index[f"fill {i}"], index[f"read {i}"]
    session = _core.Session(m.plan.encode())
    for i, result in enumerate(session.run({"x": np.zeros(1, np.float32)})):
        assert (result == i + 1).all()
    memory = session.memory([])
    assert memory["arena_bytes"] <= memory["temp_bytes"]


def test_arena_reuses_memory():
    m = PlanMaker()
    x = m.input("x", "f32", (1000,))
    y = m.output("y", "f32", (1000,))
    chain = [x, *(m.temp("f32", (1000,), i, i + 1) for i in range(8)), y]
    for source, target in itertools.pairwise(chain):
        m.kernel("copy", Arg.of(source), Arg.of(target))
    session = _core.Session(m.plan.encode())
    data = np.arange(1000, dtype=np.float32)
    np.testing.assert_array_equal(session.run({"x": data})[0], data)
    assert session.memory([]) == {"arena_bytes": 2 * 4032, "temp_bytes": 8 * 4032, "scratch_bytes": 0}


def test_threads_share_a_session(code):
    session = _core.Session(scale_add_plan().encode(), code, weights(), 2)
    faults = []

    def work(seed):
        rng = np.random.default_rng(seed)
        for _ in range(200):
            n = int(rng.integers(0, 40))
            x = rng.standard_normal((n, 4)).astype(np.float32)
            if not np.array_equal(session.call({"x": x})["y"], x * np.float32(3) + WEIGHTS[: n * 4].reshape(n, 4)):
                faults.append(seed)
            session.memory([n])

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults


def _broken(change):
    plan = scale_add_plan()
    change(plan)
    return plan.encode()


def _set(table, index, **fields):
    def change(plan):
        for name, value in fields.items():
            object.__setattr__(getattr(plan, table)[index], name, value)

    return change


def _append_expr(*words):
    return lambda plan: plan.exprs.append(words)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_set("symbols", 0, input_index=3), "no such input"),
        (_set("symbols", 0, axis=2), "no such axis"),
        (_append_expr(), "leaves 0 results"),
        (_append_expr(ExprOp.ADD), "lacks operands"),
        (_append_expr(ExprOp.EXPR, 99), "no earlier"),
        (_append_expr(ExprOp.SYMBOL, 1), "unknown symbol"),
        (_append_expr(ExprOp.CONST), "ends in the middle"),
        (_append_expr(77, 1), "unknown operator"),
        (_set("values", 0, dims=(99, 0)), "dim is 99"),
        (_set("values", 0, a=1), "stored elsewhere"),
        (_set("values", 3, a=64, b=2**40), "outside weights.bin"),
        (_set("values", 3, a=66), "not aligned|outside"),
        (_set("values", 4, c=17), "lifetime"),
        (_set("values", 5, a=5), "alias of nothing"),
        (_set("steps", 0, name="nowhere"), "no function 'nowhere'"),
        (_set("steps", 2, name="nowhere"), "no kernel 'nowhere'"),
        (_set("steps", 2, args=(Arg.of(0),)), "too few"),
        (_set("steps", 2, args=(Arg.of(0), Arg.of(0))), "writes to an input"),
        (_set("steps", 2, args=(Arg.of(0), Arg.of(3))), "writes to an input or a constant"),
        (_set("steps", 0, args=(Arg.of(77),)), "value is 77"),
        (_set("steps", 0, grain=0), "grain is 0"),
        (_set("steps", 0, kind=StepKind.JUMP, args=(Arg.imm(0),)), "jumps to step 0"),
        (_set("steps", 0, kind=StepKind.JUMP_IF_FALSE, args=(Arg.of(0), Arg.imm(1))), "no bool"),
    ],
)
def test_malformed_plans_are_refused(code, change, words):
    with pytest.raises(EdgecError, match=words) as caught:
        _core.Session(_broken(change), code, weights(), 1)
    assert caught.value.code in ("EC1507", "EC1508")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_set("values", 4, a=0), "does not fit its shape"),
        (_set("values", 3, b=15999), "constant is too short"),
        (lambda plan: plan.values[5].__setattr__("b", plan.const(4)), "outside the value"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(code, change, words):
    session = _core.Session(_broken(change), code, weights(), 1)
    with pytest.raises(EdgecError, match=words):
        session.run({"x": np.zeros((5, 4), np.float32)})


def expanded_plan(shape, offset: int, nbytes: int) -> Plan:
    m = PlanMaker()
    y = m.output("y", "f32", shape)
    w = m.plan.value(Value("f32", tuple(map(m.dim, shape)), Storage.EXPANDED, offset, nbytes))
    m.kernel("copy", Arg.of(w), Arg.of(y))
    return m.plan


def in_eight_bits(rng, blocks: int, inner: int, lanes: int):
    """(what weights.bin holds, the floats that it stands for)."""
    scale = rng.standard_normal((blocks, lanes)).astype(np.float32)
    q = rng.integers(-128, 128, (blocks, inner, lanes), np.int8)
    head = np.array([blocks, inner, lanes], np.int64)
    return np.concatenate([a.reshape(-1).view(np.uint8) for a in (head, scale, q)]), scale[:, None] * q


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 5), st.integers(1, 40), st.integers(1, 17), st.integers(0, 99))
def test_constants_in_8_bits_are_expanded_at_load(blocks, inner, lanes, seed):
    stored, want = in_eight_bits(np.random.default_rng(seed), blocks, inner, lanes)
    held = np.concatenate([np.zeros(64, np.uint8), stored])
    session = _core.Session(expanded_plan(want.shape, 64, len(stored)).encode(), b"", held, 1)
    np.testing.assert_array_equal(session.call({})["y"], want)


@pytest.mark.parametrize(
    ("word", "value"),
    [(0, 0), (0, -1), (0, 4), (1, 2**62), (2, 2**40), (2, 2**63 - 1), (1, 6), (0, 2**32)],
)
def test_malformed_constants_in_8_bits_are_refused(word, value):
    stored, want = in_eight_bits(np.random.default_rng(0), 3, 5, 7)
    stored[:24].view(np.int64)[word] = value
    with pytest.raises(EdgecError, match=r"EC1507.*constant"):
        _core.Session(expanded_plan(want.shape, 0, len(stored)).encode(), b"", stored, 1)


def test_constants_in_8_bits_that_do_not_fit_are_refused():
    stored, want = in_eight_bits(np.random.default_rng(0), 3, 5, 7)
    for size in (0, 23, 24, len(stored) - 1):
        with pytest.raises(EdgecError, match="EC1507"):
            _core.Session(expanded_plan(want.shape, 0, size).encode(), b"", stored, 1)
    session = _core.Session(expanded_plan((3, 5, 8), 0, len(stored)).encode(), b"", stored, 1)
    with pytest.raises(EdgecError, match="constant is too short"):
        session.call({})
    plan = expanded_plan(want.shape, 0, len(stored))
    plan.values[-1].dtype = "f64"
    with pytest.raises(EdgecError, match="what is expanded is f32"):
        _core.Session(plan.encode(), b"", stored, 1)
    good = expanded_plan(want.shape, 0, len(stored)).encode()
    for at in range(8, len(good), 8):
        for word in (-1, 0, 1, 5, 2**31, 2**62, -(2**63)):
            with contextlib.suppress(EdgecError):
                _core.Session(good[:at] + struct.pack("<q", word) + good[at + 8 :], b"", stored, 1).run({})


def test_truncations_and_word_changes_never_crash(code):
    good = scale_add_plan().encode()
    x = np.zeros((3, 4), np.float32)
    for size in range(0, len(good), 3):
        with pytest.raises(EdgecError):
            _core.Session(good[:size], code, weights(), 1)
    plan = scale_add_plan()
    plan.steps = [s for s in plan.steps if s.kind == StepKind.KERNEL]  # a call trusts its arguments: code is hashed
    plan.values[4].b = plan.values[4].c = 0
    good = plan.encode()
    for at in range(8, len(good), 8):
        for word in (-1, 0, 1, 2, 3, 5, 8, 2**31, 2**62, -(2**63)):
            data = good[:at] + struct.pack("<q", word) + good[at + 8 :]
            with contextlib.suppress(EdgecError):
                _core.Session(data, code, weights(), 1).run({"x": x})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_set("states", 0, heads=0), "heads is 0"),
        (_set("states", 0, dim=2**40), "dim is"),
        (_set("states", 0, dtype="f16"), "dtype is none"),
        (_set("states", 0, growth=99), "growth is 99"),
        (_set("values", 3, a=2), "no such state"),
        (_set("values", 3, dtype="i8"), "not its state's"),
        (_set("values", 3, dims=(0,)), "not its state's"),
        (lambda plan: plan.values.append(Value("f32", (0,), Storage.ALIAS, 3, 0)), "alias of a state"),
        (_set("symbols", 3, default=()), "leaves 0 results"),
        (_set("symbols", 3, default=(ExprOp.SYMBOL, 3)), "unknown symbol 3"),
        (_set("symbols", 3, default=(ExprOp.EXPR, 0)), "no earlier"),
        (_set("symbols", 2, input_index=-3), "input is -3"),
        (_set("steps", 0, args=(Arg.of(1), Arg.of(1), Arg.of(4), Arg.string("bshd"))), "'past' is no state"),
        (_set("steps", 0, args=(Arg.of(3), Arg.of(3), Arg.of(4), Arg.string("bshd"))), "'new' is a state"),
        (_set("steps", 3, name="copy", args=(Arg.of(3), Arg.of(8))), "is a state"),
        (_set("steps", 3, kind=StepKind.CALL, name="positive", extent=0, grain=1, args=(Arg.of(3),)), "takes no state"),
    ],
)
def test_malformed_states_are_refused(code, change, words):
    plan = cache_plan()
    change(plan)
    with pytest.raises(EdgecError, match=words) as caught:
        _core.Session(plan.encode(), code, None, 1)
    assert caught.value.code in ("EC1507", "EC1508")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_set("states", 0, heads=3), "not its state's"),
        (_set("states", 1, growth=0), "unlike the others"),
        (lambda plan: plan.values[4].__setattr__("dims", plan.values[3].dims), "reads more|do not fit"),
        (_set("steps", 0, args=(Arg.of(3), Arg.of(1), Arg.of(6), Arg.string("bshd"))), "another state"),
        (_set("steps", 0, args=(Arg.of(3), Arg.of(0), Arg.of(4), Arg.string("bshd"))), "does not fit the state"),
    ],
)
def test_states_that_do_not_fit_are_refused(change, words):
    plan = cache_plan()
    change(plan)
    session = _core.Session(plan.encode(), None, None, 1)
    with pytest.raises(EdgecError, match=words):
        session.run(_cache_feeds(3))


def _cache_feeds(s, b=1):
    rng = np.random.default_rng(s)
    return {n: rng.standard_normal((b, s, h, 6)).astype("f") for n, h in (("q", 4), ("k", 2), ("v", 2))}


def test_word_changes_of_a_plan_with_states_never_crash():
    good = cache_plan().encode()
    feeds = [_cache_feeds(3), _cache_feeds(1)]
    for at in range(8, len(good), 8):
        for word in (-1, 0, 1, 2, 3, 5, 8, 2**31, 2**62, -(2**63)):
            data = good[:at] + struct.pack("<q", word) + good[at + 8 :]
            with contextlib.suppress(EdgecError):
                session = _core.Session(data, None, None, 1)
                session.reserve(2, 4)
                session.run(feeds[0], [1])
                session.run(feeds[1], [1], {"last": 1})
                session.run(feeds[1], [1])
