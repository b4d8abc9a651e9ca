#!/usr/bin/env python3
"""Eight clients on `edgec serve` for a minute: none dropped, none mixed up, memory flat. `make test-load`.

usage: load.py ARTIFACT [--seconds 60] [--clients 8]
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import threading
import time
from pathlib import Path

from test_serve import Server


def rss_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("artifact")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--clients", type=int, default=8)
    a = parser.parse_args()
    server = Server(a.artifact, "--model-name", "m", "--max-concurrency", "4", "--max-queue", str(a.clients))
    prompts = [f"The number {i * 113} is interesting because" for i in range(24)]

    def ask(client, prompt: str, stream: bool) -> str:
        asked = {"model": "m", "prompt": prompt, "max_tokens": 24, "temperature": 0}
        if not stream:
            return client.completions.create(**asked).choices[0].text
        return "".join(e.choices[0].text for e in client.completions.create(**asked, stream=True))

    alone = {p: ask(server.client(), p, False) for p in prompts}
    failures: list[str] = []
    latencies: list[float] = []
    samples: list[float] = []
    end = time.monotonic() + a.seconds

    def run(number: int) -> None:
        client, choose = server.client(), random.Random(number)
        while time.monotonic() < end:
            prompt, start = choose.choice(prompts), time.monotonic()
            try:
                if ask(client, prompt, choose.random() < 0.5) != alone[prompt]:
                    failures.append(f"another text for {prompt!r}")
            except Exception as error:
                failures.append(f"{type(error).__name__}: {error}")
            latencies.append(time.monotonic() - start)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(a.clients)]
    for thread in threads:
        thread.start()
    while any(t.is_alive() for t in threads):
        time.sleep(1)
        samples.append(rss_mb(server.process.pid))
    code = server.stop()
    half = len(samples) // 2
    growth = max(samples[half:], default=0) - max(samples[:half], default=0)
    latencies.sort()
    print(f"{len(latencies)} requests of {a.clients} clients in {a.seconds:g} s; failures {len(failures)}; latency median "
          f"{statistics.median(latencies):.2f} s, 99th of 100 {latencies[int(len(latencies) * 0.99)]:.2f} s; "
          f"{24 * len(latencies) / a.seconds:.0f} tok/s at most; RSS {samples[-1]:.0f} MB, {growth:+.1f} MB in the second half; "
          f"exit status {code}")  # fmt: skip
    for failure in failures[:5]:
        print(failure)
    return int(bool(failures) or code != 0 or growth > 8)


if __name__ == "__main__":
    sys.exit(main())
