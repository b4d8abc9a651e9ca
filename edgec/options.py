"""What a build is asked for, and what it reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from edgec.errors import EdgecError

WEIGHTS = ("int4", "int8", "fp32")
UNIFORM = (4.25, 6.25, 8.5)  # --bits that need no data: all products alike
ROTATIONS = ("keys", "down", "inputs")  # what each is: rewrites/rotate.py
KV_CACHES = ("auto", "fp32", "int8", "exposed")


@dataclass(frozen=True)
class Options:
    """What a build was asked for; part of the artifact's manifest."""

    target: str = "host"
    weights: str = "int4"
    group: int | None = None  # None becomes the default: 32, of int8 weights 128
    activations: str = "int8"
    dims: Mapping[str, Any] = field(default_factory=dict)
    kv_cache: str = "auto"
    max_context: int | None = None
    embedding: int = 8
    bits: float | None = None
    prune: str | None = None
    speedup: str | None = None
    matrix_unit: str = "auto"
    rotate: str = "auto"

    def __post_init__(self) -> None:
        if self.group is None:
            object.__setattr__(self, "group", 128 if self.weights == "int8" else 32)

    @property
    def rotations(self) -> tuple[str, ...]:
        """rotate, decided: with weights of 6 bits and more, what 8-bit inputs lose counts, and weights gain as well."""
        if self.rotate == "auto":
            inputs = self.weights == "int8" or (self.weights == "int4" and (self.bits or 0) >= UNIFORM[1])
            return ("keys",) * (self.cached_in == "int8") + ("inputs",) * inputs
        return () if self.rotate == "none" else tuple(self.rotate.split(","))

    @property
    def cached_in(self) -> str:
        """kv_cache, decided: 8 bits cost far less than quantized weights do."""
        return self.kv_cache if self.kv_cache != "auto" else "fp32" if self.weights == "fp32" else "int8"

    def check(self) -> None:
        if self.weights not in WEIGHTS:
            raise EdgecError("EC1001", f"{self.weights!r} is none of {', '.join(WEIGHTS)}", "--weights")
        if self.activations not in ("int8", "fp32"):
            raise EdgecError("EC1001", f"{self.activations!r} is neither int8 nor fp32", "--activations")
        if self.activations == "fp32" and self.weights != "fp32":
            reason = f"no kernel multiplies {self.weights} weights by fp32 activations"
            raise EdgecError("EC1001", reason, "--activations", "Use --weights fp32, or leave it out")
        if self.group not in (32, 64, 128):
            raise EdgecError("EC1001", f"{self.group} is none of 32, 64, 128", "--group")
        if self.kv_cache not in KV_CACHES:
            raise EdgecError("EC1001", f"{self.kv_cache!r} is none of {', '.join(KV_CACHES)}", "--kv-cache")
        if self.max_context is not None and self.max_context < 1:
            raise EdgecError("EC1001", f"{self.max_context} is no number of tokens", "--max-context", "Give 1 or more")
        if self.embedding not in (4, 6, 8):
            raise EdgecError("EC1001", f"{self.embedding} is not 4, 6 or 8", "--embedding")
        if self.bits is not None and not 4.25 <= self.bits <= 8.5:
            raise EdgecError(
                "EC1001", f"{self.bits} is not within 4.25 and 8.5", "--bits", "Leave it out for 4.5 or 4.625"
            )
        if self.prune is not None or self.speedup is not None:
            from edgec.calibrate.prune import parse

            parse(self.prune, self.speedup)
        if unknown := [r for r in self.rotations if r not in ROTATIONS]:
            known = f"Use auto, none, or some of {', '.join(ROTATIONS)} with commas"
            raise EdgecError("EC1001", f"{unknown[0]!r} is nothing that is rotated", "--rotate", known)
        if self.weights == "fp32" and {"down", "inputs"} & {*self.rotations}:
            reason = "products of fp32 weights round no inputs"
            raise EdgecError("EC1001", reason, "--rotate", "Leave it out, or use --weights int8 or int4")
        if "keys" in self.rotations and self.cached_in != "int8":
            reason = f"keys gain from it in int8; here the cache is {self.cached_in}"
            raise EdgecError("EC1001", reason, "--rotate keys", "Leave keys out, or use --kv-cache int8")
        if self.bits and (self.weights != "int4" or self.group != 32):
            raise EdgecError(
                "EC1001",
                "it mixes kinds of int4 and int8 weights, with groups of 32",
                "--bits",
                "Leave --weights and --group out",
            )


DEFAULTS: dict[str, Any] = {"weights": "int4", "group": None, "activations": "int8", "embedding": 8}


def idle(option: str, reason: str, hint: str = "Leave it out") -> EdgecError:
    """The error for an option that would change nothing beside the others."""
    return EdgecError("EC1001", f"it would change nothing: {reason}", option, hint)


def check_encoding(weights: str, group: int | None, embedding: int | None) -> None:
    """group, embedding: None where they are not given. Raises EdgecError EC1001 where one is that `weights` has no use for."""
    if weights == "int4":
        return
    for option, value in (("--group", group), ("--embedding", embedding)):
        if value is not None:
            raise idle(f"{option} {value}", f"it is for int4 weights, and they are {weights}", "Leave one of them out")


def check_used(given: Mapping[str, Any]) -> None:
    """Of `compiler.build`'s arguments, None where they are not given. Raises EdgecError EC1001 for one that the others leave
    without effect, whatever the model."""
    weights, prune = given["weights"] or DEFAULTS["weights"], given["prune"]
    if weights == "fp32" and given["group"] is not None:
        raise idle(f"--group {given['group']}", "fp32 weights share no scales", "Leave one of them out")
    check_encoding(weights, None, given["embedding"])
    if weights == "fp32" and given["activations"] == "int8":
        raise idle("--activations int8", "products of fp32 weights take fp32 activations", "Leave one of them out")
    if weights == "fp32" and given["calib"] is not None:
        hint = "Leave it out; --eval FILE says what to compare on"
        if prune is None and given["speedup"] is None:
            raise idle("--calib", "fp32 weights are not fitted to data", hint)
        if prune is not None and prune.startswith("magnitude:"):
            raise idle("--calib", "magnitude looks at weights alone", hint)
    if given["onnx"] is not None and given["stop_after"] not in (None, "write"):
        raise idle("--onnx", f"with --stop-after {given['stop_after']} no model is written", "Leave one of them out")


@dataclass
class BuildReport:
    """What a build did. Sizes in bytes, times in seconds, shares of 1.

    weights: per weight that quantization looked at: name, role, shape, bits, group, bytes, snr_db, reason.
    weight_bits: bits that the artifact stores for each float number of the source.
    tuned_share: of all multiply-accumulates, the share that hand-written kernels and convolution templates run
    (symbols at `sample`).
    arena_bytes and values_bytes: peak of the arena, and the sum of all values, at `sample`.
    calibration: name, samples and sha256 of the data that weights were fitted to.
    rotated: how many values are rotated in front of 8 bits, by `--rotate`'s names.
    pruning: what was removed, as calibrate.prune.Pruned.as_dict says; of masks their zeros.
    notes: what a user should know: of a language model's cache, of options that change nothing of this model.
    healing: what healing changed, as edgec.distill.heal.Report says; "pruned": what it did before weights were quantized.
    cached_bytes: of the encoded weights, those that an earlier build had made. peak_rss_bytes: of this process so far.
    estimates: latency and energy on the target, as edgec.estimate.Estimate.to_dict says: of a run at `sample`; of a
    language model, of one token behind 128 and of a prompt of 128. Empty where the target lacks figures. work: what
    they are made of, (case, dims, tokens, rows of edgec.estimate.packed). loss: what the review found, see docs/loss.md.
    """

    path: str | None = None
    source_bytes: int = 0
    artifact_bytes: int = 0
    weight_bits: float = 0.0
    weights: list[dict] = field(default_factory=list)
    tuned_share: float = 1.0
    untuned: list[str] = field(default_factory=list)
    macs: int = 0
    arena_bytes: int = 0
    values_bytes: int = 0
    sample: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    calibration: dict | None = None
    healing: dict | None = None
    pruning: dict | None = None
    rotated: dict[str, int] = field(default_factory=dict)
    cached_bytes: int = 0
    peak_rss_bytes: int = 0
    phases: dict[str, float] = field(default_factory=dict)
    options: dict = field(default_factory=dict)
    estimates: list[dict] = field(default_factory=list)
    work: list[dict] = field(default_factory=list)
    loss: dict = field(default_factory=dict)
    stopped_after: str | None = None

    def to_dict(self) -> dict:
        return asdict(self)
