"""edgec kernels: the hand-written kernels, and which of them this CPU or a target can run."""

from __future__ import annotations

from edgec.cli.common import COMMON, Common, print_json, table


def kernels(*, target: str | None = None, common: Common = COMMON) -> int:
    """List the kernels and the packed weight formats.

    Parameters
    ----------
    target
        Mark what this target can run; by default this machine.
    """
    from edgec import _core

    found = [dict(k) for k in _core.kernels.list()]
    if target is not None:
        from edgec import targets

        wanted = targets.load(target)
        if wanted.name != "host":
            have = wanted.kernel_features
            for k in found:
                k["available"] = have.issuperset(k["features"])
    formats = _core.kernels.formats()
    if common.json:
        print_json({"target": target or "host", "kernels": found, "formats": formats})
        return 0
    where = "runs here" if target is None else "runs there"
    rows = [
        (k["name"], ", ".join(k["features"]) or "baseline", k["max_m"] or "any", "yes" if k["available"] else "no")
        for k in found
    ]
    table(("kernel", "needs", "rows up to>", where), rows)
    table(
        ("packed format", "kernels", "bits>", "group>", "symmetric", "bits a weight>"),
        [
            (f["name"], f["family"], f["bits"], f["group"] or "-", f["symmetric"], f"{f['bits_per_weight']:.2f}")
            for f in formats
        ],
    )
    return 0
