"""Tollgate as a system under test."""

import os
import secrets
import subprocess
import time
from pathlib import Path

from . import org
from .system import SYSTEM_CORE, Failed, Process, fill

ROOT = Path(__file__).resolve().parent.parent.parent
EMBEDDED = 'engine = "embedded"\ndurability = "process"'


def build() -> Path:
    subprocess.run(["cargo", "build", "--release", "--bin", "tollgate"], cwd=ROOT, check=True)
    target = Path(os.environ.get("CARGO_TARGET_DIR", "target"))
    return ROOT / target / "release" / "tollgate"


def start_tollgate(binary: Path, dir: Path, ports: dict, users: int, key: str, orgs: int = 1,
                   books: str = EMBEDDED, workers: int = 1, core: int | str = SYSTEM_CORE,
                   broke: int = 0) -> Process:
    """Serves, and has the orgs applied."""
    dir.mkdir()
    config = fill("tollgate.toml", dir / "tollgate.toml", dir=dir, books=books, workers=workers,
                  **ports)
    token = {"TOLLGATE_ADMIN_TOKEN": secrets.token_hex(16)}
    command = [str(binary), "serve", "-c", str(config)]
    process = Process("tollgate", command, core, dir / "log", token)
    try:
        process.wait_for(ports["ops"], "/readyz")
        began = time.monotonic()
        for number in range(orgs):
            file = org.write(dir / "org.toml", users, key, number, orgs, broke)
            apply = [str(binary), "apply", str(file), "--admin", f"http://127.0.0.1:{ports['admin']}"]
            done = subprocess.run(
                apply, env={**os.environ, **token}, capture_output=True, text=True, timeout=900
            )
            if done.returncode != 0:
                told = f"{done.stdout[-2000:]}{done.stderr[-2000:]}"
                raise Failed(f"apply: {done.returncode}\n{told}")
        seconds = time.monotonic() - began
        print(f"applied {users:,} users in {orgs:,} orgs in {seconds:.1f} s", flush=True)
    except BaseException:
        process.stop()
        raise
    return process
