"""Running artifacts of other CPUs: their own code, in a static program under qemu."""

from edgec.emulate.session import EmulatedSession

__all__ = ["EmulatedSession"]
