"""Constants that are read in parts: every part is that of the whole."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgec import kernels
from edgec.cache import Store
from edgec.frontend.model import FileArray
from edgec.ir import Quantized, constant, make
from edgec.ir.data import Data, full_box, key_text
from edgec.ir.evaluate import run as evaluate
from edgec.ir.types import TensorType, dtype_of
from edgec.ir.verify import verify
from edgec.lower.lowering import pack
from edgec.rewrites.encode import encoded
from edgec.rewrites.examples import graph_of, value, weights
from edgec.rewrites.fold import const_node
from edgec.rewrites.widen import widen


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """array -> a constant whose data lies in a file."""
    folder = tmp_path_factory.mktemp("weights")

    def store(array: np.ndarray):
        path = folder / f"{len(list(folder.iterdir()))}.bin"
        path.write_bytes(b"head" * 4 + array.tobytes())
        file = FileArray(str(path), 16, array.dtype, array.shape)
        type = TensorType(dtype_of(array.dtype), array.shape)
        whole = full_box(array.shape)
        return constant(Data(type, ("file", str(path)), lambda: {"value": file.read(whole)}, file.read))

    return store


@st.composite
def boxes(draw, shape):
    box = []
    for d in shape:
        start = draw(st.integers(0, d))
        box.append(slice(start, draw(st.integers(start, d))))
    return tuple(box)


@settings(deadline=None, max_examples=60)
@given(st.data(), st.lists(st.integers(1, 9), min_size=1, max_size=4), st.sampled_from([np.float16, np.int64]))
def test_a_box_of_a_file(stored, data, shape, dtype):
    array = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    box = data.draw(boxes(shape))
    np.testing.assert_array_equal(stored(array)["data"].part(box), array[box])


def step(draw, node):
    """An op over the constant matrix `node`."""
    n, k = node.shape
    kind = draw(
        st.sampled_from(["transpose", "slice", "concat", "gather", "add", "mul", "halves", "round", "hadamard"])
    )
    if kind == "hadamard":
        return const_node("hadamard", node, block=draw(st.sampled_from([1, 8, 32])))
    if kind == "transpose":
        return const_node("transpose", node, perm=(1, 0))
    if kind == "slice":
        back = draw(st.booleans()) and n > 2
        return const_node("slice", node, starts=(n - 1 if back else n // 4, 0), sizes=(n // 2, k),
                          steps=(-1 if back else 1, 1))  # fmt: skip
    if kind == "concat":
        other = const_node("neg", node)
        return const_node("concat", other, node, axis=draw(st.integers(0, 1)))
    if kind == "gather":
        rows = draw(st.lists(st.integers(-n, n - 1), min_size=1, max_size=2 * n))
        return const_node("gather", node, constant(np.array(rows)), axis=0)
    if kind == "add":
        return const_node("add", node, weights(*draw(st.sampled_from([(n, 1), (k,), (1, 1)]))))
    if kind == "mul":
        return const_node("mul", weights(n, 1), node)
    if kind == "halves" and n % 2 == 0:  # rows of two halves, interleaved: what merged gate and up look like
        split = const_node("reshape", node, shape=(2, n // 2, k))
        return const_node("reshape", const_node("transpose", split, perm=(1, 0, 2)), shape=(n, k))
    return const_node("reshape", node, shape=(n * k // 4, 4)) if n * k % 4 == 0 else node


@settings(deadline=None, max_examples=80)
@given(st.data(), st.sampled_from([np.float16, ml_dtypes.bfloat16, np.float32]))
def test_parts_of_folded_constants(stored, data, dtype):
    n, k = data.draw(st.sampled_from([(64, 40), (48, 96), (33, 70)]))
    node = stored(np.random.default_rng(0).standard_normal((n, k)).astype(dtype))
    node = const_node("cast", node, dtype="f32") if dtype is not np.float32 else node
    for _ in range(data.draw(st.integers(1, 4))):
        if min(node.shape) > 3:
            node = step(data.draw, node)
    found, whole = node["data"], node["data"].array()
    box = data.draw(boxes(whole.shape))
    np.testing.assert_array_equal(found.part(box), whole[box])
    blocks = [parts["value"] for _, parts in found.blocks(4, nbytes=4096)]
    np.testing.assert_array_equal(np.concatenate(blocks), whole)
    assert b"".join(p.tobytes() for p in found.pieces()) == whole.tobytes()


ENCODINGS = [(e, ()) for e in (Quantized(4, 32), Quantized(4, 64, True), Quantized(8, 32), Quantized(8, 0))]


@pytest.mark.parametrize(("encoding", "layouts"), [*ENCODINGS, *((e, ("n32k4",)) for e, _ in ENCODINGS[:2])])
def test_an_encoded_weight_is_the_packed_one(stored, encoding, layouts, monkeypatch, tmp_path):
    monkeypatch.setattr("edgec.ir.data.BLOCK", 4096)
    monkeypatch.setattr(Data.blocks, "__defaults__", (1, 4096))
    w = np.random.default_rng(0).standard_normal((90, 70)).astype(np.float16)
    source = const_node("cast", const_node("transpose", stored(w.T.copy()), perm=(1, 0)), dtype="f32")["data"]
    q, scale, zero = kernels.quantize(w.astype(np.float32), encoding.bits, encoding.group, not encoding.zero)
    done = []
    new, _ = encoded(source, encoding, store=Store(scratch=tmp_path), tick=done.append, layouts=layouts)
    assert sum(done) == w.size and len(done) > 2
    assert new.packed.format.endswith(layouts[0] if layouts else "n16k4")
    parts = new.parts()
    np.testing.assert_array_equal(parts["q"], q)
    np.testing.assert_array_equal(parts["scale"], scale)
    assert (zero is None) == ("zero" not in parts) and (zero is None or (parts["zero"] == zero).all())
    np.testing.assert_array_equal(new.rows(17, 50)["q"], q[17:50])
    for op in ("linear", "gather"):
        format = kernels.format_name(encoding.bits, encoding.group, not encoding.zero, op, layouts=layouts)
        packed = pack(make("pack", constant(new), format=format))
        np.testing.assert_array_equal(packed.parts()["bytes"], kernels.pack(format, q, scale, zero))


@settings(deadline=None, max_examples=40)
@given(st.data(), st.sampled_from(sorted(kernels.formats())), st.integers(1, 50), st.integers(1, 300))
def test_gather_reads_rows_of_every_format(data, format, n, k):
    f = kernels.formats()[format]
    w = np.random.default_rng(n).standard_normal((n, k)).astype(np.float32)
    indices = np.array(data.draw(st.lists(st.integers(-n, n - 1), max_size=8)), np.int64)
    if f.bits == 32:
        packed, rows = kernels.pack(format, w), w
    else:
        q, scale, zero = kernels.quantize(w, f.bits, f.group, f.symmetric, table=f.table)
        packed, rows = kernels.pack(format, q, scale, zero), kernels.dequantize(q, scale, zero, f.group)
    for kernel in [x.name for x in kernels.list() if x.op == "gather" and x.available]:
        got = kernels.gather(format, packed, n, k, indices, kernel=kernel)
        np.testing.assert_array_equal(got, rows[indices])


@settings(deadline=None, max_examples=60)
@given(st.data(), st.integers(0, 70), st.integers(0, 90), st.sampled_from([np.float16, np.float32, ml_dtypes.bfloat16]))
def test_to_float(data, rows, columns, dtype):
    x = np.random.default_rng(0).standard_normal((rows, columns)).astype(dtype)
    x = x.T if data.draw(st.booleans()) else x
    x = x[:: data.draw(st.sampled_from([1, 2, -1])), :: data.draw(st.sampled_from([1, 3]))]
    got = kernels.to_float(x, threads=2)
    assert got.flags.c_contiguous
    np.testing.assert_array_equal(got, x.astype(np.float32))


def test_key_text_tells_contents_apart_and_nothing_else():
    a, b = weights(40, 40)["data"], weights(40, 40, seed=1)["data"]
    texts = {key_text(d) for d in (a, b, const_node("neg", constant(a))["data"])}
    assert len(texts) == 3 and None not in texts
    assert key_text(a) == key_text(Data.of(a.array().copy()))
    assert key_text(("x", object())) is None


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_widened_models_compute_in_f32(dtype):
    narrow = np.float16 if dtype == "f16" else ml_dtypes.bfloat16
    x = value(dtype, "x", "s", 64)
    w = constant(np.random.default_rng(0).standard_normal((64, 64)).astype(narrow))
    y = make("linear", make("cast", make("cast", x, dtype="f32"), dtype=dtype), w)
    y = make("add", make("sigmoid", y), make("cast", make("iota", size=64, dtype="i64"), dtype=dtype))
    graph = graph_of(y, make("mul", x, x))
    after = widen(graph)
    verify(after)
    assert [n.dtype for _, n in after.outputs] == [dtype, dtype]
    inner = [n for n in after.nodes() if n.op not in ("input", "constant", "cast")]
    assert inner and all(n.dtype in ("f32", "i64") for n in inner)
    feeds = {"x": np.random.default_rng(1).standard_normal((3, 64)).astype(narrow)}
    want, got = evaluate(graph, feeds), evaluate(after, feeds)
    for name in want:
        np.testing.assert_allclose(got[name].astype(np.float32), want[name].astype(np.float32), rtol=0.02, atol=0.02)
    plain = graph_of(make("neg", value("f32", "x", 3)))
    assert widen(plain) is plain
