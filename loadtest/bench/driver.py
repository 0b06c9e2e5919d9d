"""wrk, and what a run of it gave."""

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

from . import cpu
from .system import Failed

SCRIPT = Path(__file__).resolve().parent.parent / "driver.lua"
CONNECTIONS = 64
ZIPF = 1.0


@dataclass(frozen=True)
class Load:
    """What every run has in common."""

    users: int
    key: str
    core: int
    orgs: int = 1


def run(load: Load, port: int, path: str, seconds: float, seed: int, core: int | None = None,
        refused: bool = False) -> dict:
    """One run; fails unless everything that was sent was answered with a success, or with a
    refusal where the users are those who have nothing left."""
    # wrk takes whole seconds; after `seconds` connections only finish what is in flight.
    length = int(seconds) + 2
    command = ["taskset", "-c", str(load.core if core is None else core)]
    command += ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{length}s", "--timeout", "10s"]
    command += ["-s", str(SCRIPT), f"http://127.0.0.1:{port}{path}", "--"]
    command += [str(load.users), str(ZIPF), str(seed), str(seconds), path, load.key]
    command += ["x" if refused else "u", str(load.orgs)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=length + 120)
    line = next((l for l in done.stdout.splitlines() if l.startswith("RESULT ")), None)
    if done.returncode != 0 or line is None:
        raise Failed(f"wrk: {done.returncode}\n{done.stdout}{done.stderr}")
    result = json.loads(line.removeprefix("RESULT "))
    check(result, refused)
    return result


def check(result: dict, refused: bool = False) -> None:
    errors = {name: count for name, count in result["errors"].items() if count}
    # wrk counts every status above 399; a probe has looked at which one it is.
    if refused and errors.get("status") == result["responses"]:
        del errors["status"]
    elif refused:
        raise Failed(f"not all were refused: {result}")
    if errors:
        raise Failed(f"the driver counted errors: {errors}")
    if result["sent"] != result["responses"]:
        raise Failed(f"{result['sent']} sent, {result['responses']} answered: not drained")
    if result["responses"] == 0:
        raise Failed("no answer at all")


def measure(load: Load, roots: list[int], port: int, path: str, seconds: float, seed: int,
            refused: bool = False) -> dict:
    """A run, with the CPU time that the processes under `roots` took from before the first request
    to after the last answer."""
    before = cpu.read(roots)
    result = run(load, port, path, seconds, seed, refused=refused)
    used = cpu.read(roots).since(before)
    answers = result["responses"]
    return result | {
        "cpu_us_per_request": used.system / answers,
        "archive_us_per_request": used.archive / answers,
        "throughput": answers / result["seconds"],
        "core_busy": (used.system + used.archive) / (result["seconds"] * 1e6),
    }
