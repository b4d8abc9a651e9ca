"""Count the instructions that an arm64 program executes inside chosen functions, under qemu.

Exact and repeatable whatever else the machine does, so that it can gate a kernel where no Arm CPU is at hand; it says
nothing of time. qemu logs each translated block once with its instructions and each execution of a block: the count is
the sum over executions of the block's length.
"""

from __future__ import annotations

import re
import struct
import subprocess
import tempfile
from collections import Counter
from pathlib import Path

SYMBOL = struct.Struct("<IBBHQQ")  # Elf64_Sym: name, info, other, section, value, size


def functions(elf: Path, pattern: str) -> list[tuple[int, int, str]]:
    """(address, size, mangled name) of the functions whose mangled name matches; the ELF must keep its symbols."""
    data = elf.read_bytes()
    if data[:6] != b"\x7fELF\x02\x01":
        raise ValueError(f"{elf} is not a 64-bit little-endian ELF file")
    (table,) = struct.unpack_from("<Q", data, 0x28)
    entry, count = struct.unpack_from("<HH", data, 0x3A)
    sections = [struct.unpack_from("<IIQQQQII", data, table + entry * i) for i in range(count)]
    found = {}
    for _, kind, _, _, offset, size, link, _ in sections:
        if kind != 2:  # SHT_SYMTAB
            continue
        names = sections[link][4]
        for at in range(offset, offset + size, SYMBOL.size):
            name_at, info, _, _, address, length = SYMBOL.unpack_from(data, at)
            if info & 15 != 2 or not length:  # STT_FUNC
                continue
            name = data[names + name_at : data.index(b"\0", names + name_at)].decode()
            if re.search(pattern, name):
                found[address] = (address, length, name)
    return sorted(found.values())


def count(qemu: list[str], elf: Path, arguments: list[str], pattern: str) -> tuple[Counter[str], Counter[str]]:
    """Executed instructions per function and per mnemonic. `qemu`: the command without the program.

    Raises ValueError when no function matches, RuntimeError when the program fails.
    """
    chosen = functions(elf, pattern)
    if not chosen:
        raise ValueError(f"no function of {elf} matches {pattern}")
    ranges = ",".join(f"{address:#x}+{size:#x}" for address, size, _ in chosen)
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        # nochain: a block that jumps straight into the next would not be logged.
        options = ["-d", "in_asm,exec,nochain", "-D", str(log), "-dfilter", ranges]
        run = subprocess.run([*qemu, *options, str(elf), *arguments], capture_output=True, text=True, check=False)
        if run.returncode:
            raise RuntimeError(f"{elf.name} {' '.join(arguments)} failed: {run.stdout}{run.stderr}")
        blocks, executed = read_log(log)
    per_function: Counter[str] = Counter()
    per_mnemonic: Counter[str] = Counter()
    for start, times in executed.items():
        for address, size, name in chosen:
            if address <= start < address + size:
                per_function[name] += times * len(blocks[start])
        for mnemonic in blocks[start]:
            per_mnemonic[mnemonic] += times
    return per_function, per_mnemonic


def read_log(log: Path) -> tuple[dict[int, list[str]], Counter[int]]:
    """Mnemonics of each translated block, and how often each ran, by start address."""
    blocks: dict[int, list[str]] = {}
    executed: Counter[int] = Counter()
    block: list[str] | None = None
    with log.open(errors="replace") as lines:
        for line in lines:
            if line.startswith("Trace"):
                executed[int(line.split("[", 1)[1].split("/")[1], 16)] += 1
            elif line.startswith("IN:"):
                block = []
            elif line.startswith("0x") and block is not None:
                address, _, rest = line.partition(":")
                if not block:
                    blocks[int(address, 16)] = block
                block.append(rest.split()[1])
    return blocks, executed
