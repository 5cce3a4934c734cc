"""How long E2B's own SDK takes, call by call, against a daemon whose variables are in the environment.

    offshoot serve --e2b          # paste what it prints
    python bench.py [SAMPLES]

The floor of the client alone, against a server that answers at once, was measured as 1.9 ms for `commands.run` and 1.0 ms
for `run_code`. What a login shell costs inside the guest is in every `commands.run`, and is shown beside it.
"""

import statistics
import sys
import time
from collections.abc import Callable

from e2b_code_interpreter import Sandbox

SHELLS = """
import subprocess, time
times = []
for _ in range({samples}):
    began = time.perf_counter()
    subprocess.run(["/bin/bash", "-l", "-c", "true"])
    times.append((time.perf_counter() - began) * 1e3)
print(*times)
"""


def main() -> None:
    samples = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    print("| what | n | p50 ms | p95 ms | p99 ms | max ms |")
    print("|---|---:|---:|---:|---:|---:|")
    with Sandbox.create("base", timeout=3600) as sandbox:
        assert sandbox.run_code("1+1").text == "2"
        sandbox.commands.run("true")
        # The pool makes the next instance in the meantime, which is another row's business.
        time.sleep(8)
        report("run_code('1+1')", timed(samples, lambda: sandbox.run_code("1+1")))
        report("commands.run('true')", timed(samples, lambda: sandbox.commands.run("true")))
        printed = "".join(sandbox.run_code(SHELLS.format(samples=samples)).logs.stdout)
        report("`bash -l -c true` spawned inside the guest", [float(took) for took in printed.split()])
        report("files.write of 1 KiB", timed(samples, lambda: sandbox.files.write("/tmp/bench", "x" * 1024)))
        report("files.read of 1 KiB", timed(samples, lambda: sandbox.files.read("/tmp/bench")))
        report("get_info", timed(samples, sandbox.get_info))
    report("create and kill", timed(max(3, samples // 20), create))


def create() -> None:
    Sandbox.create("base", timeout=60).kill()


def timed(samples: int, call: Callable[[], object]) -> list[float]:
    times = []
    for _ in range(samples):
        began = time.perf_counter()
        call()
        times.append((time.perf_counter() - began) * 1e3)
    return times


def report(what: str, times: list[float]) -> None:
    cuts = statistics.quantiles(times, n=100, method="inclusive")
    print(f"| {what} | {len(times)} | {cuts[49]:.1f} | {cuts[94]:.1f} | {cuts[98]:.1f} | {max(times):.1f} |", flush=True)


if __name__ == "__main__":
    main()
