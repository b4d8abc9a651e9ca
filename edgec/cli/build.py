"""edgec build: an ONNX model to an artifact."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter

from edgec.cli.common import (
    COMMON,
    Common,
    bytes_text,
    existing,
    fields,
    parse_dims,
    print_json,
    ratio_text,
    read_array,
    split_pair,
    writable,
)
from edgec.cli.loss import Review, lines, parse_limits
from edgec.errors import EdgecError
from edgec.options import idle


def build(
    model: Path,
    /,
    *,
    target: str = "host",
    matrix_unit: Literal["auto", "amx", "sme", "accelerate", "none"] = "auto",
    output: Annotated[Path | None, Parameter(name=["--output", "-o"])] = None,
    weights: Literal["int4", "int8", "fp32"] | None = None,
    group: int | None = None,
    activations: Literal["int8", "fp32"] | None = None,
    kv_cache: Literal["auto", "fp32", "int8", "exposed"] = "auto",
    max_context: int | None = None,
    embedding: Literal[4, 6, 8] | None = None,
    bits: float | None = None,
    rotate: str = "auto",
    prune: str | None = None,
    speedup: str | None = None,
    dim: tuple[str, ...] = (),
    const: tuple[str, ...] = (),
    calib: Path | None = None,
    distill: Path | None = None,
    next_token: float | None = None,
    onnx: Path | None = None,
    eval: Path | None = None,
    max_loss: str | None = None,
    stop_after: str | None = None,
    dump_ir: Path | None = None,
    tokenizer: str | None = None,
    no_cache: bool = False,
    no_check: bool = False,
    common: Common = COMMON,
) -> int:
    """Compile an ONNX model to an artifact.

    Parameters
    ----------
    model
        The ONNX model, or a folder that has model.onnx (or one other model), itself or in its folder onnx/.
    target
        What to compile for; `edgec targets` lists them.
    matrix_unit
        What products of many rows run on, of what the target has: auto (its matrix unit, and on macOS the system's library
        Accelerate for fp32 weights), none (its vector unit), amx or sme by name, accelerate (the library alone).
        docs/amx.md says what AMX is, and when to leave it out.
    output
        The artifact to write; by default the model's name with .edgec, in this folder.
    weights
        What weights of matrix products and embeddings become, by default int4.
    group
        Weights that share a scale: 32 (the default of int4), 64 or 128 (that of int8; their tables keep it).
    activations
        int8 quantizes activations of quantized products at run time, fp32 goes with --weights fp32: that is the default of each.
    kv_cache
        A language model's keys and values: kept by the session in int8 or (auto: with --weights fp32) in fp32, or
        exposed as inputs and outputs.
    max_context
        Tokens that a kept cache has room for; by default what the model's configuration says, else 4096.
    embedding
        Bits of embedding tables under int4, and of a head that is tied to one; by default 8.
    bits
        4.25 takes int4 weights from a table of 16 uneven values: fewer bits and less error than the 4.5 to 4.625 of equal
        steps. Language models on x86-64 have that by default, without --group. 6.25 and 8.5 give all products 6 or 8 bits.
        Others (with --calib) are an average: the products that need it most get 6 or 8 bits.
    rotate
        What passes a Hadamard matrix before it is rounded to 8 bits at run time, so that no number stands out: keys (of an int8
        cache), down (inputs of products behind an activation), inputs (of all products), with commas; or none. auto: keys, and
        with --weights int8 or --bits 6.25 and more inputs (docs/quantization.md).
    prune
        Remove what matters least: 20% of the work, or by kind: ffn=30%,heads=25%,conv=20%,layers=2,attention=4 (docs/pruning.md).
    speedup
        Remove as much as makes a run so many times faster on the target: 1.5x.
    dim
        NAME=SIZE fixes a symbolic dim, NAME=LO..HI bounds it; repeat it for several. An unnamed dim is INPUT.AXIS.
    const
        NAME=VALUE or NAME=FILE.npy makes an input a constant; repeat it for several.
    calib
        What the model is for: texts (.txt), .jsonl, or arrays (.npz, a folder of .npy). Weights are fitted to it, layer by
        layer; docs/quantization.md says how.
    distill
        Texts or arrays (as --calib) on which norms, biases and scales learn from the source what the quantized model lost, and
        all weights what a pruned one lost; calibrates too where --calib is not given; needs torch, minutes.
    next_token
        A language model's healing learns the next tokens of --distill's texts as well, this share of its loss (0.5): lower
        perplexity on texts of their kind, farther from the source.
    onnx
        Write the model as ONNX too, pruned and healed, before its weights are quantized: this file.
    eval
        What to measure the loss on: text (.txt, .jsonl), arrays (.npz) or a folder of .npy; by default a text of edgec's own
        where the model takes text, else made-up numbers.
    max_loss
        Fail, and write nothing, where more is lost: cosine=0.99, snr=20 (dB), max=0.05 (of an output's largest value); of
        language models kl=0.05, top1=90%, ppl=3%. Several with commas.
    stop_after
        Stop after this phase; nothing is written but what --dump-ir asks for.
    dump_ir
        Write the graph after each phase into this folder.
    tokenizer
        The folder whose tokenizer.json, chat template and configs the artifact takes along, by default the model's own;
        none: without.
    no_cache
        Make all weights anew, and keep none for the next build.
    no_check
        Do not compare the artifact with the source afterwards.
    """
    start = time.perf_counter()
    name = (model.resolve().name if existing(model).is_dir() else model.stem) + ".edgec"
    model = model_file(model)
    out = writable(output or Path(name), "--output")
    onnx = None if onnx is None else writable(onnx, "--onnx")
    _check_target(target)
    for option, file in (("--calib", calib), ("--distill", distill), ("--eval", eval)):
        if file is not None:
            existing(file, option)
    limits = parse_limits(max_loss)
    unwritten = None if stop_after in (None, "write") else f"--stop-after {stop_after}"
    if (limits or eval is not None) and (skipped := "--no-check" if no_check else unwritten):
        option = "--max-loss" if limits else "--eval"
        raise idle(option, f"nothing is measured with {skipped}", "Leave one of them out")
    constants = {name: read_array(value, f"--const {name}") for name, value in map(_pair, const)}
    from edgec import compiler

    if stop_after is not None and stop_after not in compiler.PHASES:
        raise EdgecError("EC1001", f"{stop_after!r} is none of {', '.join(compiler.PHASES)}", "--stop-after")
    review = None
    with _progress(common.json) as progress:
        _know_this_machine(target, lambda: progress("measure this machine, once", time.perf_counter() - start))
        if not no_check:
            review = Review(model, constants, texts=eval, calib=calib or distill, limits=limits,
                            progress=lambda phase, share: progress(phase, time.perf_counter() - start, share))  # fmt: skip
        report = compiler.build(
            model,
            target=target,
            matrix_unit=matrix_unit,
            weights=weights,
            group=group,
            activations=activations,
            kv_cache=kv_cache,
            max_context=max_context,
            embedding=embedding,
            bits=bits,
            rotate=rotate,
            prune=prune,
            speedup=speedup,
            calib=calib,
            dims=parse_dims(dim),
            constants=constants,
            out=out,
            stop_after=stop_after,
            dump_ir=dump_ir,
            cache=not no_cache,
            tokenizer=tokenizer,
            distill=distill,
            next_token=next_token,
            onnx=onnx,
            progress=progress,
            review=review,
        )
    found = report.to_dict() | {"check": report.loss or None, "seconds": time.perf_counter() - start}
    if common.json:
        print_json(found)
    elif report.path:
        _show(found, out)
    else:
        print(f"stopped after {report.stopped_after}: nothing is written" + (f" but {dump_ir}" if dump_ir else ""))
    return 0


def _know_this_machine(target: str, before: Callable[[], None]) -> None:
    """Estimates for the host go by what its products reach, which is measured once and kept."""
    from edgec import rates, targets

    if target == "host":
        found = targets.load(target)
        if rates.measured(found.cores or 1) is None:
            before()
            rates.of(found, measure_now=True)


def _pair(text: str) -> tuple[str, str]:
    return split_pair(text, "--const", "NAME=VALUE or NAME=FILE.npy")


def model_file(model: Path) -> Path:
    from edgec.frontend import folder

    return folder.model_file(model)


def _check_target(name: str) -> None:
    """Raises EC1402, with the nearest names, for a target that does not exist."""
    from edgec import targets

    if name not in targets.names():
        raise targets.unknown(name, "--target")


class _Eta:
    """How long a phase still takes, from its share done so far."""

    def __init__(self) -> None:
        self.phase, self.began = "", 0.0

    def left(self, phase: str, seconds: float, share: float | None) -> float | None:
        """Seconds; None where it cannot be told yet."""
        if phase != self.phase:
            self.phase, self.began = phase, seconds
        gone = seconds - self.began
        return gone * (1 - share) / share if share and gone > 1 else None


@contextmanager
def _progress(quiet: bool) -> Iterator[Any]:
    """A callback (phase, seconds so far, share done): a bar on a terminal, plain lines elsewhere, nothing when quiet."""
    from edgec.cli.common import console

    terminal = console(stderr=True)
    if quiet:
        yield lambda phase, seconds, share=None: None
    elif terminal.is_terminal:
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

        eta = _Eta()
        with Progress(
            TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[left]}"),
            console=terminal, transient=True,
        ) as bar:  # fmt: skip
            task = bar.add_task("starting", total=None, left="")

            def show(phase: str, seconds: float, share: float | None = None) -> None:
                left = eta.left(phase, seconds, share)
                if share is None:
                    terminal.print(f"[{seconds:6.1f} s] {phase}", style="dim")
                bar.update(task, description=phase, total=None if share is None else 1, completed=share or 0,
                           left="" if left is None else f"{left:.0f} s left")  # fmt: skip

            yield show
    else:
        yield _lines()


def _lines(every: float = 5.0):
    """A callback that prints a line for each phase, and for a long one every some seconds."""
    import sys

    eta, last = _Eta(), 0.0

    def show(phase: str, seconds: float, share: float | None = None) -> None:
        nonlocal last
        left = eta.left(phase, seconds, share)
        if share is not None and (left is None or seconds - last < every or share >= 1):
            return
        last = seconds
        more = "" if share is None else f" {share:.0%}, {left:.0f} s left"
        print(f"[{seconds:6.1f} s] {phase}{more}", file=sys.stderr, flush=True)

    return show


def _show(found: dict[str, Any], out: Path) -> None:
    before, after = found["source_bytes"], found["artifact_bytes"]
    memory, cached = None, found["cached_bytes"]
    if found["values_bytes"]:
        at = ", ".join(f"{k}={v}" for k, v in found["sample"].items())
        memory = f"{bytes_text(found['arena_bytes'])} peak, {bytes_text(found['values_bytes'])} without reuse"
        memory += f" ({at})" if at else ""
    fields(
        (
            ("artifact", out),
            ("size", f"{bytes_text(before)} -> {bytes_text(after)} ({ratio_text(before, after)})"),
            ("weights", f"{found['weight_bits']:.2f} bits each" if found["weight_bits"] else None),
            ("convs", _convs_text(found["weights"])),
            ("pruned", _pruning_text(found["pruning"])),
            ("rotated", ", ".join(f"{count} {name}" for name, count in found["rotated"].items()) or None),
            ("tuned", f"{found['tuned_share']:.1%} of {found['macs'] / 1e6:.1f} M multiply-accumulates"),
            ("memory", memory),
            *(("estimated", e["text"]) for e in found["estimates"]),
            ("healed", _healing_text(found["healing"])),
            *lines(found["check"], found["weights"]),
            ("cache", f"{bytes_text(cached)} of encoded weights from an earlier build" if cached else None),
            ("time", f"{found['seconds']:.1f} s, {bytes_text(found['peak_rss_bytes'])} of memory at most"),
        )
    )
    for line in found["notes"]:
        print(f"note: {line}")
    for line in found["untuned"][:5]:
        print(f"untuned: {line}")


def _healing_text(found: dict[str, Any] | None) -> str | None:
    if found is None:
        return None
    parts = []
    for what, part in (("pruned: ", found.get("pruned")), ("quantized: " if "pruned" in found else "", found)):
        if part is not None:
            before, after = (sum(part[k].values()) for k in ("before", "after"))
            parts.append(f"{what}{before:.4f} -> {after:.4f}, {part['closed']:.0%} of it gone")
    return f"loss against the source, on data kept out: {'; '.join(parts)}"


def _convs_text(weights: list[dict[str, Any]]) -> str | None:
    """How many convolutions multiply integers, and how many would lose too much; None where none does either."""
    convs = [w for w in weights if w["role"] == "conv"]
    rounded = sum(w["activations"] == 8 for w in convs)
    kept = sum("would change an output" in w["reason"] for w in convs)
    if not rounded and not kept:
        return None
    text = f"{rounded} of {len(convs)} compute in 8 bits"
    return text + (f"; {kept} would change an output too much, and stay in fp32" if kept else "")


def _pruning_text(found: dict[str, Any] | None) -> str | None:
    if found is None:
        return None
    if "zeros" in found:
        share = sum(row["zeros"] for row in found["zeros"]) / len(found["zeros"])
        return f"{share:.1%} zeros in {len(found['zeros'])} products by {found['method']}; shapes stay"
    counts: dict[str, list[int]] = {}
    for row in found["removed"]:
        before, after = counts.setdefault(row["kind"], [0, 0])
        counts[row["kind"]] = [before + row["before"], after + row["after"]]
    parts = [f"{kind} {before} -> {after}" for kind, (before, after) in counts.items()]
    parts += [f"{len(found['dropped'])} branches dropped"] if found["dropped"] else []
    return f"{', '.join(parts) or 'nothing'}; {found['work']:.1%} of the products' work left, by {found['method']}"
