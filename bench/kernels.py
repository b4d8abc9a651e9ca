"""int4, int8 and fp32 `linear` beside onnxruntime and this machine's limits, alternately in one process, medians.

    python bench/kernels.py [--threads 1 2] [--rounds 21] [--best] [--only decode|gemv|cache|gemm|small] [--json FILE]
                            [--ggml LIBDIR]

gemv: one row, chained over copies of the weight that exceed 192 MB together, so that they stream from DRAM.
decode: all products of a token of a language model, one after the other, each with its own weights (layers repeat every
128 MB), the norms in front of them, SwiGLU behind; beside the time in which the same bytes are read.
cache: one row, 4096 x 4096, the weight in cache. gemm: 128 and 512 rows. small: the products of a 384-wide encoder.
Peers: onnxruntime's MatMulNBits (block 32, symmetric, accuracy_level 4) and its fp32 MatMul; with --ggml, ggml's repacked
q4_0 and q4_K (LIBDIR: where llama-cpp-python keeps libggml-base.so and libggml-cpu.so).
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from edgec import _core
from edgec import kernels as ek

if __package__:
    from bench.ggml import Ggml, types
else:
    from ggml import Ggml, types

STREAM_BYTES = 192 << 20
STATISTIC = statistics.median
SETTLE_S = 0.06
GGML: Ggml | None = None
STREAMED = ("s4g32n16k4", "u4g32n16k4", "t4g32n16k4", "s8n16k4")
# (rows of W, columns, activation, a norm in front) of a layer; layers; rows and columns of the head
DECODERS = {
    "SmolLM2-135M": (
        ((960, 576, "none", True), (576, 576, "none", False), (3072, 576, "swiglu", True), (576, 1536, "none", False)),
        30,
        (49152, 576),
    ),
    "Llama-3.2-1B": (
        (
            (3072, 2048, "none", True),
            (2048, 2048, "none", False),
            (16384, 2048, "swiglu", True),
            (2048, 8192, "none", False),
        ),
        16,
        (128256, 2048),
    ),
}


class Limits:
    """The machine's limits, measured by bench/limits.cpp (compiled here, with $CXX or c++)."""

    def __init__(self, folder: Path) -> None:
        library = folder / "limits.so"
        source = Path(__file__).with_name("limits.cpp")
        command = [os.environ.get("CXX", "c++"), "-std=c++20", "-O3", "-mavx2", "-mfma", "-shared", "-fPIC", "-pthread"]
        subprocess.run([*command, str(source), "-o", str(library)], check=True)
        self.lib = ctypes.CDLL(str(library))
        for name in ("read_bandwidth", "int8_limit", "vnni_limit", "fma_limit"):
            getattr(self.lib, name).restype = ctypes.c_double
        self.lib.read_bandwidth.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int]
        for function in (self.lib.int8_limit, self.lib.vnni_limit, self.lib.fma_limit):
            function.argtypes = [ctypes.c_int64, ctypes.c_int]
        self.data = np.ones(STREAM_BYTES + 4096, np.uint8)

    def read_gbs(self, threads: int) -> float:
        return self.lib.read_bandwidth(self.data.ctypes.data, STREAM_BYTES, threads)

    def int8_gops(self, threads: int) -> float:
        return self.lib.int8_limit(50000, threads)

    def vnni_gops(self, threads: int) -> float:
        return self.lib.vnni_limit(50000, threads)

    def fma_gflops(self, threads: int) -> float:
        return self.lib.fma_limit(100000, threads)


def session(
    nodes: list, weights: dict[str, np.ndarray], k: int, outputs: list[str], threads: int
) -> ort.InferenceSession:
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["m", k])],
        [helper.make_tensor_value_info(o, TensorProto.FLOAT, None) for o in outputs],
        [numpy_helper.from_array(w, name) for name, w in weights.items()],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=9)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def ort_int4(n: int, k: int, copies: int, threads: int) -> ort.InferenceSession:
    """`copies` products of one input, each by its own weight and each an output."""
    rng = np.random.default_rng(0)
    nodes, weights = [], {}
    for i in range(copies):
        weights[f"w{i}"] = rng.integers(0, 256, (n, k // 32, 16), np.uint8)
        weights[f"s{i}"] = np.full((n * (k // 32),), 1e-3, np.float32)
        attributes = {"K": k, "N": n, "bits": 4, "block_size": 32, "accuracy_level": 4}
        inputs = ["x", f"w{i}", f"s{i}"]
        nodes.append(helper.make_node("MatMulNBits", inputs, [f"y{i}"], domain="com.microsoft", **attributes))
    return session(nodes, weights, k, [f"y{i}" for i in range(copies)], threads)


def ort_fp32(n: int, k: int, threads: int) -> ort.InferenceSession:
    w = np.random.default_rng(0).standard_normal((k, n)).astype(np.float32)
    return session([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": w}, k, ["y"], threads)


def ggml_types(k: int) -> list[str]:
    return types(k) if GGML else []


def packed_copies(format: str, n: int, k: int, copies: int) -> list[np.ndarray]:
    f = ek.formats()[format]
    w = np.random.default_rng(1).standard_normal((n, k)).astype(np.float32)
    q = (w,) if f.bits == 32 else ek.quantize(w, f.bits, f.group, f.symmetric, search=False, threads=2, table=f.table)
    first = ek.pack(format, *q, threads=2)
    return [aligned(first) for _ in range(copies)]


def aligned(data: np.ndarray) -> np.ndarray:
    """A copy at a multiple of 64 bytes, as artifacts have their weights."""
    memory = np.empty(data.nbytes + 64, np.uint8)
    start = -memory.ctypes.data % 64
    memory[start : start + data.nbytes] = data
    return memory[start : start + data.nbytes]


def alternate(calls: dict, rounds: int) -> dict[str, float]:
    """Median seconds of each call (the least under --best), run in turn."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(rounds + 2):
        for name, call in calls.items():
            # The one before may still have threads that spin: the first calls of each turn do not count.
            settled = time.perf_counter() + SETTLE_S
            while time.perf_counter() < settled:
                call()
            start = time.perf_counter()
            call()
            if i >= 2:
                times[name].append(time.perf_counter() - start)
    return {name: STATISTIC(t) for name, t in times.items()}


def rate(measured: list[float]) -> float:
    return max(measured) if STATISTIC is min else statistics.median(measured)


def product(format: str, m: int, n: int, k: int, copies: int, threads: int):
    packed = packed_copies(format, n, k, copies)
    x = np.random.default_rng(2).standard_normal((m, k)).astype(np.float32)
    out = np.empty((m, n), np.float32)
    steps = [(p, format, n, k, "none", False) for p in packed]
    return (lambda: _core.kernels.gemm_chain(x, steps, out, threads)), packed[0].nbytes


def run_gemv(limits: Limits, threads: int, rounds: int, shapes, copies_for) -> list[dict]:
    rows = []
    for n, k in shapes:
        copies = copies_for(n, k)
        x = np.random.default_rng(2).standard_normal((1, k)).astype(np.float32)
        peer = ort_int4(n, k, copies, threads)
        calls = {"ort": lambda p=peer, x=x: p.run(None, {"x": x})}
        sizes = {}
        for format in STREAMED:
            calls[format], sizes[format] = product(format, 1, n, k, copies, threads)
        for kind in ggml_types(k):
            calls[kind], sizes[kind] = GGML.product(kind, 1, n, k, copies, threads)
        bandwidth = []
        calls["limit"] = lambda b=bandwidth: b.append(limits.read_gbs(threads))
        times = alternate(calls, rounds)
        limit = rate(bandwidth)
        row = {
            "shape": f"{k}x{n}",
            "T": threads,
            "copies": copies,
            "limit_gbs": limit,
            "ort_us": times["ort"] / copies * 1e6,
        }
        for format, size in sizes.items():
            each = times[format] / copies
            row |= {
                f"{format}_us": each * 1e6,
                f"{format}_gbs": size / each / 1e9,
                f"{format}/ort": each * copies / times["ort"],
            }
        rows.append(row)
        peers = [
            f"{f} {row[f + '_us']:.1f} us, {row[f + '_gbs']:.1f} GB/s "
            f"({row[f + '_gbs'] / limit:.0%}), x{row[f + '/ort']:.2f}"
            for f in sizes
        ]
        print(
            f"  {k}x{n} T{threads}: reads {limit:.1f} GB/s; ort {row['ort_us']:.1f} us; {'; '.join(peers)}", flush=True
        )
    return rows


def run_gemm(limits: Limits, threads: int, rounds: int, shapes) -> list[dict]:
    rows = []
    for m, n, k in shapes:
        x = np.random.default_rng(2).standard_normal((m, k)).astype(np.float32)
        int4, fp32 = ort_int4(n, k, 1, threads), ort_fp32(n, k, threads)
        peak, vnni, fma = [], [], []
        calls = {kind: GGML.product(kind, m, n, k, 1, threads)[0] for kind in ggml_types(k)}
        calls |= {
            "ort int4": lambda p=int4, x=x: p.run(None, {"x": x}),
            "ort fp32": lambda p=fp32, x=x: p.run(None, {"x": x}),
            "limit": lambda b=peak: b.append(limits.int8_gops(threads)),
            "vnni": lambda b=vnni: b.append(limits.vnni_gops(threads)),
            "fma": lambda b=fma: b.append(limits.fma_gflops(threads)),
        }
        formats = ("s4g32n16k4", "u4g32n16k4", "t4g32n16k4", "s8g32n16k4", "f32n16")
        for format in formats:
            calls[format] = product(format, m, n, k, 1, threads)[0]
        times = alternate(calls, rounds)
        gops = {name: 2 * m * n * k / t / 1e9 for name, t in times.items()}
        row = {
            "shape": f"{m}x{k}x{n}",
            "T": threads,
            "limit_gops": rate(peak),
            "vnni_gops": rate(vnni),
            "fma_gflops": rate(fma),
        }
        rows.append(row | {f"{name}_gops": g for name, g in gops.items() if name not in ("limit", "vnni", "fma")})
        limit = {"f32n16": row["fma_gflops"]}
        print(
            f"  {m}x{k}x{n:<5} T{threads}  limit {row['limit_gops']:.0f} GOP/s, "
            + (f"vpdpbusd {row['vnni_gops']:.0f}, " if row["vnni_gops"] else "")
            + f"fma {row['fma_gflops']:.0f}  "
            f"ort int4 {gops['ort int4']:.0f}, fp32 {gops['ort fp32']:.0f}  "
            + "".join(f"ggml {kind} {gops[kind]:.0f}  " for kind in ("q4_0", "q4_K") if kind in gops)
            + "  ".join(f"{f} {gops[f]:.0f} ({gops[f] / limit.get(f, row['limit_gops']):.0%})" for f in formats),
            flush=True,
        )
    return rows


def run_decode(limits: Limits, threads: int, rounds: int) -> list[dict]:
    rows = []
    for model, (layer, layers, head) in DECODERS.items():
        bytes_each = sum(n * k for n, k, _, _ in layer) * 9 // 16
        copies = min(layers, -(-(128 << 20) // bytes_each))
        calls, sizes = {}, {}
        x = np.random.default_rng(2).standard_normal((1, max(k for _, k, _, _ in layer))).astype(np.float32)
        out = np.empty((1, max(head[0], *(n for n, *_ in layer))), np.float32)
        last = (packed_copies("s8n16k4", *head, 1)[0], "s8n16k4", *head, "none", True)
        for format in ("s4g32n16k4", "t4g32n16k4"):
            weights = [packed_copies(format, n, k, copies) for n, k, _, _ in layer]
            steps = [(w[i % copies], format, *shape) for i in range(layers) for w, shape in zip(weights, layer)] + [
                last
            ]
            calls[format] = lambda steps=steps, x=x, out=out: _core.kernels.gemm_chain(x, steps, out, threads)
            sizes[format] = sum(step[0].nbytes for step in steps)
        bandwidth: list[float] = []
        calls["limit"] = lambda b=bandwidth: b.append(limits.read_gbs(threads))
        times, limit = alternate(calls, rounds), rate(bandwidth)
        row = {"model": model, "T": threads, "limit_gbs": limit}
        for format, size in sizes.items():
            row |= {f"{format}_ms": times[format] * 1e3, f"{format}_of_limit": size / times[format] / 1e9 / limit}
        rows.append(row)
        each = [
            f"{f} {times[f] * 1e3:.2f} ms ({1 / times[f]:.0f} tokens/s), {size / 1e6:.0f} MB at "
            f"{size / times[f] / 1e9:.1f} GB/s ({size / times[f] / 1e9 / limit:.0%})"
            for f, size in sizes.items()
        ]
        print(f"  {model} T{threads}: reads {limit:.1f} GB/s; {'; '.join(each)}", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--only", choices=("decode", "gemv", "cache", "gemm", "small"))
    parser.add_argument("--ggml", type=Path, metavar="LIBDIR")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--best", action="store_true", help="the least time instead of the median: for a busy machine")
    args = parser.parse_args()
    global STATISTIC, GGML
    if args.best:
        STATISTIC = min
    if args.ggml:
        GGML = Ggml(args.ggml)
    with tempfile.TemporaryDirectory() as folder:
        limits = Limits(Path(folder))
        result: dict[str, list[dict]] = {}
        streamed = [(2048, 2048), (8192, 2048), (2048, 8192), (4096, 4096)]
        encoder = [(m, n, k) for m in (16, 128) for n, k in ((384, 384), (1536, 384), (384, 1536))]
        sections = {
            "decode": lambda t: run_decode(limits, t, args.rounds),
            "gemv": lambda t: run_gemv(limits, t, args.rounds, streamed, lambda n, k: -(-STREAM_BYTES * 2 // (n * k))),
            "cache": lambda t: run_gemv(limits, t, args.rounds, [(4096, 4096)], lambda n, k: 1),
            "gemm": lambda t: run_gemm(limits, t, args.rounds, [(m, 2048, 2048) for m in (128, 512)]),
            "small": lambda t: run_gemm(limits, t, args.rounds, encoder),
        }
        for name, section in sections.items():
            if args.only in (None, name):
                print(name, flush=True)
                result[name] = [row for t in args.threads for row in section(t)]
    if args.json:
        args.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
