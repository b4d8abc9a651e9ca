"""ggml's products, through the shared libraries that llama-cpp-python brings: a peer for bench/kernels.py."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np

TYPES = {"q4_0": 2, "q4_K": 12}  # ggml.h: enum ggml_type; f32 is 0


BLOCK = {"q4_0": 32, "q4_K": 256}  # what k must be a multiple of: ggml does not check


def types(k: int) -> list[str]:
    """Those that a weight of k columns can have."""
    return [t for t in TYPES if k % BLOCK[t] == 0]


class _Parameters(ctypes.Structure):
    _fields_ = [("mem_size", ctypes.c_size_t), ("mem_buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool)]


class Ggml:
    """ggml's CPU backend with its repacked weights. OSError: the libraries are not in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.base = ctypes.CDLL(str(folder / "libggml-base.so"), mode=ctypes.RTLD_GLOBAL)
        self.cpu = ctypes.CDLL(str(folder / "libggml-cpu.so"), mode=ctypes.RTLD_GLOBAL)
        for library, names in (
            (self.base, "init new_tensor_2d mul_mat new_graph_custom backend_alloc_ctx_tensors_from_buft"),
            (self.cpu, "backend_cpu_init backend_cpu_reg"),
        ):
            for name in names.split():
                getattr(library, f"ggml_{name}").restype = ctypes.c_void_p
        self.base.ggml_init.argtypes = [_Parameters]
        self.base.ggml_nbytes.restype = self.base.ggml_quantize_chunk.restype = ctypes.c_size_t
        self.base.ggml_new_tensor_2d.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
        self.base.ggml_quantize_chunk.argtypes = [
            ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_int64,
            ctypes.c_void_p,
        ]  # fmt: skip
        for name in ("ggml_backend_cpu_buffer_type", "ggml_backend_buft_is_host"):
            getattr(self.base, name).restype = ctypes.c_void_p

    def _repacked(self) -> ctypes.c_void_p:
        """The buffer type that rearranges weights for this CPU."""
        reg = ctypes.c_void_p(self.cpu.ggml_backend_cpu_reg())
        self.base.ggml_backend_reg_dev_get.restype = ctypes.c_void_p
        self.base.ggml_backend_reg_get_proc_address.restype = ctypes.c_void_p
        device = self.base.ggml_backend_reg_dev_get(reg, ctypes.c_size_t(0))
        found = self.base.ggml_backend_reg_get_proc_address(reg, b"ggml_backend_dev_get_extra_bufts")
        extra = ctypes.CFUNCTYPE(ctypes.POINTER(ctypes.c_void_p), ctypes.c_void_p)(found)(device)
        self.base.ggml_backend_buft_name.restype = ctypes.c_char_p
        i = 0
        while extra and extra[i]:
            if b"REPACK" in self.base.ggml_backend_buft_name(ctypes.c_void_p(extra[i])):
                return ctypes.c_void_p(extra[i])
            i += 1
        raise OSError("this ggml has no repacked buffers")

    def _context(self) -> ctypes.c_void_p:
        return ctypes.c_void_p(self.base.ggml_init(_Parameters(16 << 20, None, True)))

    def product(self, type: str, m: int, n: int, k: int, copies: int, threads: int):
        """(call, bytes of one weight): `copies` products [m, k] x [n, k].T of one input, each by its own weight."""
        base, kind = self.base, TYPES[type]
        w = np.random.default_rng(1).standard_normal((n, k)).astype(np.float32)
        weights, rest = self._context(), self._context()
        tensors = [ctypes.c_void_p(base.ggml_new_tensor_2d(weights, kind, k, n)) for _ in range(copies)]
        size = base.ggml_nbytes(tensors[0])
        packed = np.empty(size, np.uint8)
        base.ggml_quantize_chunk(kind, w.ctypes.data, packed.ctypes.data, 0, n, k, None)
        x = ctypes.c_void_p(base.ggml_new_tensor_2d(rest, 0, k, m))
        graph = ctypes.c_void_p(base.ggml_new_graph_custom(rest, ctypes.c_size_t(copies + 8), False))
        for t in tensors:
            base.ggml_build_forward_expand(graph, ctypes.c_void_p(base.ggml_mul_mat(rest, t, x)))
        if not base.ggml_backend_alloc_ctx_tensors_from_buft(weights, self._repacked()):
            raise OSError("ggml could not allocate the weights")
        plain = ctypes.c_void_p(base.ggml_backend_cpu_buffer_type())
        base.ggml_backend_alloc_ctx_tensors_from_buft(rest, plain)
        for t in tensors:
            base.ggml_backend_tensor_set(
                t, ctypes.c_void_p(packed.ctypes.data), ctypes.c_size_t(0), ctypes.c_size_t(size)
            )
        values = np.random.default_rng(2).standard_normal((m, k)).astype(np.float32)
        base.ggml_backend_tensor_set(
            x, ctypes.c_void_p(values.ctypes.data), ctypes.c_size_t(0), ctypes.c_size_t(values.nbytes)
        )
        backend = ctypes.c_void_p(self.cpu.ggml_backend_cpu_init())
        self.cpu.ggml_backend_cpu_set_n_threads(backend, threads)

        def call() -> None:
            if base.ggml_backend_graph_compute(backend, graph):
                raise OSError("ggml could not compute")

        return call, size
