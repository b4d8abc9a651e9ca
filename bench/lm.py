#!/usr/bin/env python3
"""Language models beside llama.cpp and onnxruntime-genai: prefill and decode, in turns in one run.

usage: python bench/lm.py MODEL.edgec [--gguf FILE ...] [--quantize F16.gguf] [--genai FOLDER] [--peers PYTHON]
                          [--threads 2] [--rounds 5] [--prompt 128] [--decode 32] [--json FILE]

Each contestant is a process of its own that times itself when asked; while one works the others wait, without spinning.
--peers: the interpreter that has llama-cpp-python and onnxruntime-genai. --quantize makes Q4_0 and Q4_K_M of a 16-bit GGUF
with llama.cpp's own quantizer. Medians over the rounds; the bandwidth of reading memory is measured in the same rounds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

# Each worker: a line "prefill N" or "decode N DEPTH" comes in, the seconds it took go out.
COMMON = """
import sys, time
def serve(prefill, decode):
    print("ready", flush=True)
    for line in sys.stdin:
        word, *sizes = line.split()
        print({"prefill": prefill, "decode": decode}[word](*map(int, sizes)), flush=True)
def ids(n, vocab):
    return [(7919 * i + 13) % (vocab - 300) + 100 for i in range(n)]
"""
EDGEC = """
import edgec
from edgec.cli.bench_lm import prefill_rates
lm = edgec.load(sys.argv[1], threads=int(sys.argv[2]))
vocab = lm.lm["vocab"]
def prefill(n):
    return n / prefill_rates(lm, ids(n, vocab), 1)[0]
def decode(n, depth):
    g = lm.generate(ids=ids(depth, vocab), max_tokens=n + 1, ignore_eos=True, speculate=False)
    list(g)
    return n / g.timings["decode_tok_s"]
serve(prefill, decode)
"""
LLAMA = """
from llama_cpp import Llama
llm = Llama(sys.argv[1], n_ctx=1024, n_batch=512, n_threads=int(sys.argv[2]), n_threads_batch=int(sys.argv[2]), verbose=False)
vocab = llm.n_vocab()
def prefill(n):
    llm.reset(); start = time.perf_counter(); llm.eval(ids(n, vocab)); return time.perf_counter() - start
def decode(n, depth):
    llm.reset(); llm.eval(ids(depth, vocab)); token = 100; start = time.perf_counter()
    for i in range(n):
        llm.eval([token + i])
    return time.perf_counter() - start
serve(prefill, decode)
"""
GENAI = """
import onnxruntime_genai as og
config = og.Config(sys.argv[1])
config.overlay('{"model": {"decoder": {"session_options": {"intra_op_num_threads": %s}}}}' % sys.argv[2])
model = og.Model(config)
import json
vocab = json.load(open(sys.argv[1] + "/genai_config.json"))["model"]["vocab_size"]
def start_with(n):
    params = og.GeneratorParams(model); params.set_search_options(max_length=n + 600, min_length=n + 590, do_sample=False)
    g = og.Generator(model, params); start = time.perf_counter(); g.append_tokens(ids(n, vocab)); return g, start
def prefill(n):
    g, start = start_with(n); g.generate_next_token(); return time.perf_counter() - start
def decode(n, depth):
    g, _ = start_with(depth); g.generate_next_token(); start = time.perf_counter()
    for _ in range(n):
        g.generate_next_token()
    return time.perf_counter() - start
serve(prefill, decode)
"""


class Worker:
    def __init__(self, python: str, code: str, model: Path, threads: int) -> None:
        command = [python, "-c", COMMON + code, str(model), str(threads)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        if not self._line().startswith("ready"):
            raise SystemExit(f"{model}: the worker did not start; is what it needs installed in {python}?")

    def _line(self) -> str:
        return self.process.stdout.readline()

    def ask(self, text: str) -> float:
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()
        return float(self._line())

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def quantized(source: Path, folder: Path, python: str) -> list[Path]:
    """Q4_0 and Q4_K_M of a 16-bit GGUF."""
    made = []
    for name, code in (("Q4_0", 2), ("Q4_K_M", 15)):
        out = folder / f"{source.stem}-{name}.gguf"
        script = (
            "import sys, llama_cpp as l; p = l.llama_model_quantize_default_params(); p.ftype = int(sys.argv[3]); "
            "sys.exit(l.llama_model_quantize(sys.argv[1].encode(), sys.argv[2].encode(), p))"
        )
        subprocess.run([python, "-c", script, str(source), str(out), str(code)], check=True, capture_output=True)
        made.append(out)
    return made


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("model", type=Path, nargs="+")
    ap.add_argument("--gguf", type=Path, action="append", default=[])
    ap.add_argument("--quantize", type=Path)
    ap.add_argument("--genai", type=Path)
    ap.add_argument("--peers", default=sys.executable)
    ap.add_argument("--threads", type=int, default=2)
    ap.add_argument("--rounds", type=int, default=5)
    ap.add_argument("--prompt", type=int, default=128)
    ap.add_argument("--decode", type=int, default=32)
    ap.add_argument("--json", type=Path)
    args = ap.parse_args()
    from kernels import Limits

    with tempfile.TemporaryDirectory() as tmp:
        limits = Limits(Path(tmp))
        ggufs = args.gguf + (quantized(args.quantize, Path(tmp), args.peers) if args.quantize else [])
        workers = {f"edgec {m.stem}": Worker(sys.executable, EDGEC, m, args.threads) for m in args.model}
        workers |= {f"llama.cpp {g.stem}": Worker(args.peers, LLAMA, g, args.threads) for g in ggufs}
        if args.genai:
            workers[f"genai {args.genai.name}"] = Worker(args.peers, GENAI, args.genai, args.threads)
        times: dict[str, dict[str, list[float]]] = {name: {"prefill": [], "decode": []} for name in workers}
        bandwidth = []
        for turn in range(args.rounds + 1):  # the first to warm up
            for name, worker in workers.items():
                prefill = args.prompt / worker.ask(f"prefill {args.prompt}")
                decode = args.decode / worker.ask(f"decode {args.decode} {args.prompt}")
                if turn:
                    times[name]["prefill"].append(prefill)
                    times[name]["decode"].append(decode)
            bandwidth.append(limits.read_gbs(args.threads))
        for worker in workers.values():
            worker.close()
    result = {
        name: {test: {"tok_s": statistics.median(r), "all": r} for test, r in tests.items()}
        for name, tests in times.items()
    }
    print(f"reads {statistics.median(bandwidth):.1f} GB/s, {args.threads} threads, medians of {args.rounds}")
    for name, tests in result.items():
        shown = ", ".join(f"{test} {r['tok_s']:.1f}" for test, r in tests.items())
        print(f"{name}: {shown} tok/s")
    if args.json:
        args.json.write_text(json.dumps({"read_gbs": bandwidth, "models": result}, indent=1) + "\n")


if __name__ == "__main__":
    main()
