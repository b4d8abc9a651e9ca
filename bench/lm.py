#!/usr/bin/env python3
"""Language models beside llama.cpp and onnxruntime-genai: prefill and decode, in turns in one run.

usage: python bench/lm.py MODEL.edgec [--gguf FILE ...] [--quantize F16.gguf] [--genai FOLDER] [--peers PYTHON]
                          [--threads 2] [--rounds 5] [--prompt 128] [--decode 32] [--depth N] [--json FILE]

Each contestant is a process of its own that times itself when asked; while one works the others wait, without spinning.
--peers: the interpreter that has llama-cpp-python and onnxruntime-genai. --quantize makes Q4_0 and Q4_K_M of a 16-bit GGUF
with llama.cpp's own quantizer (bench/random_gguf.py makes one of random weights). --depth decodes behind N tokens as well.
Medians over the rounds. The bandwidth of reading memory is measured before and after each turn of the first contestant, when
nobody's threads spin any more; the share of it that its weights take in decoding is of the same round.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# Each worker: a line "prefill N" or "decode N DEPTH" comes in, the seconds it took go out.
COMMON = """
import sys, time
def serve(prefill, decode, bytes_a_token=0):
    print("ready", bytes_a_token, flush=True)
    for line in sys.stdin:
        word, *sizes = line.split()
        print({"prefill": prefill, "decode": decode}[word](*map(int, sizes)), flush=True)
def ids(n, vocab):
    return [(7919 * i + 13) % (vocab - 300) + 100 for i in range(n)]
"""
EDGEC = """
import edgec
from edgec.cli.bench_lm import prefill_rates, weight_bytes
lm = edgec.load(sys.argv[1], threads=int(sys.argv[2]))
vocab = lm.lm["vocab"]
def prefill(n):
    return n / prefill_rates(lm, ids(n, vocab), 1)[0]
def decode(n, depth):
    g = lm.generate(ids=ids(depth, vocab), max_tokens=n + 1, ignore_eos=True, speculate=False)
    list(g)
    return n / g.timings["decode_tok_s"]
serve(prefill, decode, weight_bytes(lm))
"""
LLAMA = """
from llama_cpp import Llama
llm = Llama(sys.argv[1], n_ctx=8192, n_batch=512, n_threads=int(sys.argv[2]), n_threads_batch=int(sys.argv[2]), verbose=False)
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


FIRST = 16  # tokens of the prompt whose time to the first token is measured


class Worker:
    def __init__(self, python: str, code: str, model: Path, threads: int) -> None:
        command = [python, "-c", COMMON + code, str(model), str(threads)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        word, *rest = self._line().split() or [""]
        if word != "ready":
            raise SystemExit(f"{model}: the worker did not start; is what it needs installed in {python}?")
        self.bytes_a_token = int(rest[0])

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
    ap.add_argument("--depth", type=int)
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
        tests = {f"pp{args.prompt}": (f"prefill {args.prompt}", args.prompt)}
        tests[f"tg{args.decode}"] = (f"decode {args.decode} {args.prompt}", args.decode)
        if args.depth:
            tests[f"tg{args.decode} @ d{args.depth}"] = (f"decode {args.decode} {args.depth}", args.decode)
        tests[f"ttft{FIRST} ms"] = (f"prefill {FIRST}", 0)
        found: dict[str, dict[str, list[float]]] = {name: {test: [] for test in tests} for name in workers}
        first, bandwidth, shares = next(iter(workers.values())), [], []
        for turn in range(args.rounds + 1):  # the first to warm up
            for name, worker in workers.items():
                around = [read(limits, args.threads)] if worker is first else []
                for test, (question, tokens) in tests.items():
                    took = worker.ask(question)
                    if turn:
                        found[name][test].append(tokens / took if tokens else took * 1e3)
                if not around:
                    continue
                bandwidth.append(statistics.mean([*around, read(limits, args.threads)]))
                if turn:
                    shares.append(worker.bytes_a_token * found[name][f"tg{args.decode}"][-1] / bandwidth[-1] / 1e9)
        for worker in workers.values():
            worker.close()
    print(f"reads {statistics.median(bandwidth):.1f} GB/s, {args.threads} threads, medians of {args.rounds}")
    for name, results in found.items():
        print(f"{name}: " + ", ".join(f"{test} {statistics.median(r):.1f}" for test, r in results.items()))
    print(f"{first.bytes_a_token / 1e6:.0f} MB of weights a token: {statistics.median(shares):.0%} of the reads")
    if args.json:
        args.json.write_text(json.dumps({"read_gbs": bandwidth, "shares": shares, "models": found}, indent=1) + "\n")


def read(limits, threads: int) -> float:
    """GB/s."""
    time.sleep(0.3)
    return limits.read_gbs(threads)


if __name__ == "__main__":
    main()
