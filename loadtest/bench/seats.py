"""An org of many users with one licence each, and a walk over all of them."""

import json
import subprocess
from pathlib import Path

from . import driver, org
from .system import Failed

SCRIPT = Path(__file__).resolve().parent / "sweep.lua"
SECONDS = 20


def write(to: Path, users: int, secret: str) -> Path:
    with to.open("w") as out:
        out.write(org.head())
        out.write(f'secret = "{secret}"\n')
        for i in range(users):
            licence = f'{{ id = "lic-{i:07}", plan = "cc-pro" }}'
            out.write(f'\n[[user]]\nid = "u{i:07}"\ngroups = ["everyone"]\nlicences = [{licence}]\n')
    return to


def sweep(load: driver.Load, port: int, path: str) -> int:
    """One metered request for every user; how many were answered, each with a success."""
    answered = first = 0
    while first < load.users:
        command = ["taskset", "-c", str(load.core), "wrk", "-t1", f"-c{driver.CONNECTIONS}"]
        command += [f"-d{SECONDS + 2}s", "--timeout", "30s", "-s", str(SCRIPT)]
        command += [f"http://127.0.0.1:{port}{path}", "--", str(load.users), str(first)]
        command += [str(SECONDS), path, load.key]
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS + 120)
        line = next((l for l in done.stdout.splitlines() if l.startswith("RESULT ")), None)
        if done.returncode != 0 or line is None:
            raise Failed(f"wrk: {done.returncode}\n{done.stdout}{done.stderr}")
        result = json.loads(line.removeprefix("RESULT "))
        driver.check(result)
        answered, first = answered + result["responses"], result["next"]
    return answered
