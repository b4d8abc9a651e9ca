"""edgec targets: what models can be compiled for."""

from __future__ import annotations

from dataclasses import asdict

from edgec.cli.common import COMMON, Common, bytes_text, fields, print_json, table

# what a person reads of each key
_LABELS = {
    "name": "target", "description": "for", "triple": "triple", "cpu": "cpu (LLVM)", "features": "features added",
    "requires": "the CPU must have", "vector_bits": "vector register", "matrix_unit": "matrix unit", "link": "linked as",
    "packed": "packed formats", "cores": "cores", "efficiency_cores": "efficiency cores, left alone",
    "l1d": "L1 data cache", "l2": "L2 cache per core", "l3": "L3 cache", "clock_ghz": "clock",
    "bandwidth_gbs": "memory read", "int8_macs": "int8 products", "fp32_macs": "fp32 products", "watts": "power",
}  # fmt: skip
_UNITS = {"vector_bits": "bits", "clock_ghz": "GHz", "bandwidth_gbs": "GB/s", "int8_macs": "a cycle and core",
          "fp32_macs": "a cycle and core", "watts": "W under load"}  # fmt: skip
_LINKS = {"elf": "ELF, glibc", "bionic": "ELF, Android's libraries", "macho": "Mach-O, ad-hoc signature"}


def _text(key: str, value) -> str:
    """Empty: not worth a line."""
    if value in ((), 0, "", "none"):
        return ""
    if isinstance(value, tuple):
        return ", ".join(value)
    if key in ("l1d", "l2", "l3"):
        return bytes_text(value)
    return f"{_LINKS.get(value, value)} {_UNITS.get(key, '')}".rstrip()


def targets(name: str | None = None, /, *, common: Common = COMMON) -> int:
    """List the targets, or show one.

    Parameters
    ----------
    name
        The target to show; `host` is this machine.
    """
    from edgec import targets as known

    if name is not None:
        from edgec import rates

        loaded = known.load(name)
        target, estimates = asdict(loaded), rates.of(loaded)
        if common.json:
            print_json(target | {"rates": estimates and asdict(estimates)})
        else:
            fields((label, text) for key, label in _LABELS.items() if (text := _text(key, target[key])))
            if estimates is not None:
                print(f"\nestimates go by ({estimates.source}):")
                fields(estimates.lines())
            print(f"\nedgec build MODEL --target {name}")
        return 0
    found = [known.load(n) for n in known.names()]
    if common.json:
        print_json({"targets": [asdict(t) for t in found]})
    else:
        table(("target", "triple", "cpu", ""), [(t.name, t.triple, t.cpu, t.description) for t in found])
    return 0
