"""Convolution and pooling templates beside onnxruntime's fp32, one layer at a time, alternately in one process.

    python bench/conv.py [--threads 1] [--only TEXT] [--model ppocr-det|nudenet|mtcnn] [--int8] [--target host]

Prints for each layer: calls in the model, both times (lower quartiles), their ratio, GFLOP/s and the share of the FMA
peak. onnxruntime's times hold its change of layout, which a whole model pays less often. --int8: instead of onnxruntime, the
same convolutions in 8 bits, those that a build would take; GFLOP/s are then theirs.
"""

from __future__ import annotations

import argparse
import ctypes
import threading
import time

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

from edgec import targets
from edgec.ir.node import Data, constant, make
from edgec.ir.types import TensorType
from edgec.lower.fusion import KINDS
from edgec.lower.groups import Group
from edgec.rewrites.convs import in_floats, stepped
from edgec.rewrites.encode import in_channels
from edgec.testing.groups import CompiledGroups

PEAK = 102.0  # GFLOP/s of one core: two FMA units of 8 lanes at 3.19 GHz
# (calls, op, x, w or kernel, strides, pads, group)
S1, P0, P1, P2 = (1, 1), (0,) * 4, (1,) * 4, (2,) * 4


def conv(calls, c, size, m, k, s=1, group=1):
    return calls, "conv", (1, c, size, size), (m, c // group, k, k), (s, s), (k // 2,) * 4, group


LAYERS = {
    "ppocr-det": [
        conv(1, 3, 640, 16, 3, 2),
        conv(1, 16, 320, 16, 3, 1, 16),
        conv(1, 16, 320, 32, 1),
        conv(1, 32, 320, 32, 3, 2, 32),
        conv(1, 32, 160, 48, 1),
        conv(1, 48, 160, 48, 3, 1, 48),
        conv(1, 48, 160, 48, 1),
        conv(1, 48, 160, 48, 3, 2, 48),
        conv(1, 48, 80, 96, 1),
        conv(1, 96, 80, 96, 3, 1, 96),
        conv(1, 96, 80, 96, 1),
        conv(1, 96, 80, 96, 3, 2, 96),
        conv(1, 96, 40, 192, 1),
        conv(4, 192, 40, 192, 5, 1, 192),
        conv(4, 192, 40, 192, 1),
        conv(1, 192, 40, 192, 5, 2, 192),
        conv(1, 192, 1, 48, 1),
        conv(1, 48, 1, 192, 1),
        conv(1, 192, 20, 384, 1),
        conv(3, 384, 20, 384, 5, 1, 384),
        conv(1, 384, 1, 96, 1),
        conv(1, 96, 1, 384, 1),
        conv(3, 384, 20, 384, 1),
        conv(1, 48, 160, 12, 1),
        conv(1, 96, 80, 18, 1),
        conv(1, 192, 40, 42, 1),
        conv(1, 384, 20, 360, 1),
        conv(1, 360, 20, 96, 1),
        conv(4, 96, 1, 24, 1),
        conv(4, 24, 1, 96, 1),
        conv(1, 42, 40, 96, 1),
        conv(1, 18, 80, 96, 1),
        conv(1, 12, 160, 96, 1),
        conv(1, 96, 20, 24, 3),
        conv(1, 96, 40, 24, 3),
        conv(1, 96, 80, 24, 3),
        conv(2, 96, 160, 24, 3),
        (1, "conv_transpose", (1, 24, 160, 160), (24, 24, 2, 2), (2, 2), P0, 1),
        (1, "conv_transpose", (1, 24, 320, 320), (24, 1, 2, 2), (2, 2), P0, 1),
        (1, "resize", (1, 96, 80, 80), (2, 2), S1, P0, 1),
        (1, "resize", (1, 24, 20, 20), (8, 8), S1, P0, 1),
    ],
    "nudenet": [
        conv(1, 3, 320, 16, 3, 2),
        conv(1, 16, 160, 32, 3, 2),
        conv(1, 32, 80, 32, 1),
        conv(2, 16, 80, 16, 3),
        conv(1, 48, 80, 32, 1),
        conv(1, 32, 80, 64, 3, 2),
        conv(2, 64, 40, 64, 1),
        conv(6, 32, 40, 32, 3),
        conv(1, 128, 40, 64, 1),
        conv(1, 64, 40, 128, 3, 2),
        conv(1, 128, 20, 128, 1),
        conv(10, 64, 20, 64, 3),
        conv(1, 256, 20, 128, 1),
        conv(1, 128, 20, 256, 3, 2),
        conv(1, 256, 10, 256, 1),
        conv(4, 128, 10, 128, 3),
        conv(3, 384, 10, 256, 1),
        conv(1, 256, 10, 128, 1),
        conv(1, 512, 10, 256, 1),
        conv(1, 384, 20, 128, 1),
        conv(3, 192, 20, 128, 1),
        conv(1, 192, 40, 64, 1),
        conv(1, 96, 40, 64, 1),
        conv(1, 64, 40, 64, 3, 2),
        conv(4, 64, 40, 64, 3),
        conv(1, 64, 40, 18, 1),
        conv(1, 128, 20, 128, 3, 2),
        conv(2, 128, 20, 64, 3),
        conv(1, 64, 20, 64, 1),
        conv(1, 64, 20, 18, 1),
        conv(2, 256, 10, 64, 3),
        conv(2, 64, 10, 64, 3),
        conv(1, 64, 10, 64, 1),
        conv(1, 64, 10, 18, 1),
        (1, "conv", (1, 16, 4, 2100), (1, 16, 1, 1), S1, P0, 1),
        (3, "max_pool", (1, 128, 10, 10), (5, 5), S1, P2, 1),
        (1, "resize", (1, 128, 20, 20), (2, 2), S1, P0, 1),
    ],
    "mtcnn": [
        (1, "conv", (1, 3, 120, 160), (10, 3, 3, 3), S1, P0, 1),
        (1, "max_pool", (1, 10, 118, 158), (2, 2), (2, 2), P0, 1),
        (1, "conv", (1, 10, 59, 79), (16, 10, 3, 3), S1, P0, 1),
        (1, "conv", (1, 16, 57, 77), (32, 16, 3, 3), S1, P0, 1),
        (1, "conv", (8, 3, 48, 48), (32, 3, 3, 3), S1, P0, 1),
        (1, "max_pool", (8, 32, 46, 46), (3, 3), (2, 2), (0, 0, 1, 1), 1),
        (1, "conv", (8, 32, 23, 23), (64, 32, 3, 3), S1, P0, 1),
        (1, "conv", (8, 64, 10, 10), (64, 64, 3, 3), S1, P0, 1),
        (1, "conv", (8, 64, 4, 4), (128, 64, 2, 2), S1, P0, 1),
    ],
}
ONNX = {"conv": "Conv", "conv_transpose": "ConvTranspose", "max_pool": "MaxPool", "resize": "Resize"}


def ours(layer, rng):
    """The layer's node and its operand node."""
    _, op, x, w, strides, pads, group = layer
    x_node = make("input", name="x", type=TensorType("f32", x))
    if op == "resize":
        sizes = (*x[:2], *(n * f for n, f in zip(x[2:], w)))
        return (
            make(
                "resize",
                x_node,
                sizes=sizes,
                scales=(1.0, 1.0, *map(float, w)),
                coordinates="asymmetric",
                nearest="floor",
            ),
            x_node,
            {},
        )
    ones = (1,) * len(strides)
    if op == "max_pool":
        return make(op, x_node, kernel=w, strides=strides, pads=pads, dilations=ones), x_node, {}
    weights = (rng.standard_normal(w) * 0.1).astype(np.float32)
    bias = rng.standard_normal(w[0] if op == "conv" else w[1] * group).astype(np.float32)
    attrs = {"strides": strides, "pads": pads, "dilations": ones, "group": group}
    if op == "conv_transpose":
        attrs["output_padding"] = (0,) * len(strides)
    return make(op, x_node, constant(weights), constant(bias), **attrs), x_node, {"w": weights, "b": bias}


def in_8_bits(node, x_node, arrays, rng):
    """The convolution with weights of int8 and its input on a grid; None where a build would leave it in floats."""
    if node.op != "conv" or in_floats(node) is not None:
        return None
    step = rng.uniform(0.02, 0.04, x_node.shape[1]).astype(np.float32)
    data = in_channels(stepped(Data.of(arrays["w"]), step), True)[0]
    grid = constant(np.stack([step, np.full_like(step, 128)]))
    return make("conv", x_node, constant(data), node.inputs[2], None, grid, **node.attrs)


def session(layer, arrays, threads: int) -> ort.InferenceSession:
    _, op, x, w, strides, pads, group = layer
    attrs = {"strides": strides, "pads": pads}
    inits = [helper.make_tensor(k, TensorProto.FLOAT, v.shape, v.tobytes(), raw=True) for k, v in arrays.items()]
    if op in ("conv", "conv_transpose"):
        node = helper.make_node(ONNX[op], ["x", "w", "b"], ["y"], group=group, **attrs)
    elif op == "resize":
        inits.append(helper.make_tensor("s", TensorProto.FLOAT, [4], [1.0, 1.0, *map(float, w)]))
        node = helper.make_node(
            "Resize",
            ["x", "", "s"],
            ["y"],
            mode="nearest",
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
        )
    else:
        node = helper.make_node(ONNX[op], ["x"], ["y"], kernel_shape=w, **attrs)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        inits,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    return ort.InferenceSession(onnx.ModelProto.SerializeToString(model), options, providers=["CPUExecutionProvider"])


def flops(layer, out_shape) -> float:
    _, op, x, w, *_ = layer
    if op == "conv":
        return 2.0 * np.prod(out_shape) * np.prod(w[1:])
    return 2.0 * np.prod(x) * np.prod(w[1:]) if op == "conv_transpose" else 0.0


def caller(cg: CompiledGroups, index: int, node, x: np.ndarray, x_node, threads: int):
    """A function that runs the layer once, in `threads` slices, and the output array."""
    _, compiled = cg.groups[index]
    out = np.empty(node.shape, np.float32)
    function, held, extent = getattr(cg.loaded(), compiled.symbol), [out], compiled.extent
    calls = []
    for i in range(threads):
        args = []
        for kind, what, *packing in compiled.args:
            if kind == "dim":
                args.append(ctypes.c_int64(what))
                continue
            if kind == "packed":
                array = packing[0].packed(*(node["data"] for node in what)).array()
            elif kind == "scratch":
                array = np.empty(what, np.uint8)
            else:
                array = x if what is x_node else out if what is node else what["data"].array()
            held.append(array)
            args.append(ctypes.c_void_p(array.ctypes.data))
        calls.append([*args, ctypes.c_int64(extent * i // threads), ctypes.c_int64(extent * (i + 1) // threads)])
    if threads == 1:
        return (lambda: function(*calls[0])), out, held
    gate, done = threading.Barrier(threads), threading.Barrier(threads)

    def worker(i):
        while True:
            gate.wait()
            function(*calls[i])
            done.wait()

    for i in range(1, threads):
        threading.Thread(target=worker, args=(i,), daemon=True).start()

    def run():
        gate.wait()
        function(*calls[0])
        done.wait()

    return run, out, held


def measure(layer, threads: int, seconds: float, target, int8: bool):
    """Lower quartiles of the two contestants' times, and the layer's operations; None: nothing to compare."""
    rng = np.random.default_rng(0)
    node, x_node, arrays = ours(layer, rng)
    cg = CompiledGroups(target)
    index = cg.add(Group(KINDS[node.op], (node,), node.operands(), (node,)))
    x = rng.standard_normal(layer[2]).astype(np.float32)
    times: tuple[list, list] = ([], [])
    if int8:
        rounded = in_8_bits(node, x_node, arrays, rng)
        if rounded is None:
            return None
        other = cg.add(Group("conv", (rounded,), rounded.operands(), (rounded,)))
        plain, _, _held = caller(cg, index, node, x, x_node, threads)
        run, _, _held_too = caller(cg, other, rounded, x, x_node, threads)
        return *alternate(times, run, plain, seconds), flops(layer, node.shape)
    run, out, _held = caller(cg, index, node, x, x_node, threads)
    peer = session(layer, arrays, threads)
    run()
    want = peer.run(None, {"x": x})[0]
    assert np.abs(out - want).max() < 1e-3, (layer, np.abs(out - want).max())
    binding = peer.io_binding()
    binding.bind_cpu_input("x", x)
    binding.bind_output("y")
    return *alternate(times, run, lambda: peer.run_with_iobinding(binding), seconds), flops(layer, node.shape)


def alternate(times, ours, others, seconds: float) -> list[float]:
    stop = time.perf_counter() + seconds
    while time.perf_counter() < stop or len(times[0]) < 5:
        for record, f in zip(times, (ours, others)):
            start = time.perf_counter()
            f()
            record.append(time.perf_counter() - start)
    return [sorted(t)[len(t) // 4] for t in times]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", default="")
    parser.add_argument("--model", choices=list(LAYERS))
    parser.add_argument("--seconds", type=float, default=0.25, help="per layer")
    parser.add_argument("--int8", action="store_true")
    parser.add_argument("--target", default="host")
    args = parser.parse_args()
    columns, target = ("int8 us", "fp32 us") if args.int8 else ("edgec us", "ort us"), targets.load(args.target)
    print(f"{'':2} {'layer':62} {columns[0]:>9} {columns[1]:>9} {'ratio':>6} {'GFLOP/s':>8} {'peak':>5}")
    for model in [args.model] if args.model else LAYERS:
        mine = theirs = 0.0
        for layer in LAYERS[model]:
            text = f"{layer[1]} {layer[2]} {layer[3]} s{layer[4][0]}"
            if args.only not in text:
                continue
            found = measure(layer, args.threads, args.seconds, target, args.int8)
            if found is None:
                continue
            a, o, f = found
            mine, theirs = mine + layer[0] * a, theirs + layer[0] * o
            rate = f / a / 1e9
            share = rate / PEAK / args.threads
            times = f"{a * 1e6:9.1f} {o * 1e6:9.1f} {a / o:6.2f}"
            print(f"{layer[0]:2} {text:62} {times} {rate:8.1f} {share:5.0%}", flush=True)
        ratio = mine / max(theirs, 1e-9)
        names = ("int8", "fp32") if args.int8 else ("edgec", "onnxruntime")
        print(f"{model}: {names[0]} {mine * 1e3:.2f} ms, {names[1]} {theirs * 1e3:.2f} ms, ratio {ratio:.2f}\n")


if __name__ == "__main__":
    main()
