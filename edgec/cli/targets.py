"""edgec targets: what models can be compiled for."""

from __future__ import annotations

from dataclasses import asdict

from edgec.cli.common import COMMON, Common, bytes_text, fields, print_json, table


def targets(name: str | None = None, /, *, common: Common = COMMON) -> int:
    """List the targets, or show one.

    Parameters
    ----------
    name
        The target to show; `host` is this machine.
    """
    from edgec import targets as known

    if name is not None:
        target = asdict(known.load(name))
        if common.json:
            print_json(target)
        else:
            fields(
                (k, ", ".join(v) if isinstance(v, tuple) else bytes_text(v) if k in ("l1d", "l2", "l3") and v else v)
                for k, v in target.items()
                if v not in ((), 0, "")
            )
        return 0
    found = [known.load(n) for n in known.names()]
    if common.json:
        print_json({"targets": [asdict(t) for t in found]})
    else:
        table(("target", "triple", "cpu", ""), [(t.name, t.triple, t.cpu, t.description) for t in found])
    return 0
