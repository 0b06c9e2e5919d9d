"""A Redis of a measurement."""

import subprocess
from pathlib import Path

from .system import SYSTEM_CORE, Failed, Process

# As docs/scaling.md says; without the rewriting of its file, which would be another process.
SETTINGS = """\
bind 127.0.0.1
save ""
appendonly yes
appendfsync everysec
auto-aof-rewrite-percentage 0
maxmemory-policy noeviction
"""


class Redis:
    def __init__(self, port: int, dir: Path):
        dir.mkdir()
        config = dir / "redis.conf"
        config.write_text(f"{SETTINGS}port {port}\ndir {dir}\n")
        self.port = port
        self.process = Process("redis", ["redis-server", str(config)], SYSTEM_CORE, dir / "log")
        self.process.wait_until(lambda: self.cli("ping", check=False).strip() == "PONG")

    def cli(self, *words: str, check: bool = True, given: str | None = None) -> str:
        command = ["redis-cli", "-p", str(self.port), *words]
        done = subprocess.run(command, input=given, capture_output=True, text=True, timeout=60)
        if check and (done.returncode != 0 or done.stdout.startswith("ERR")):
            raise Failed(f"redis-cli {words[0]}: {done.stdout}{done.stderr}")
        return done.stdout

    def calls(self) -> dict[str, int]:
        """How often each command was called; those that functions call are counted too."""
        lines = self.cli("info", "commandstats").splitlines()
        split = (line.removeprefix("cmdstat_").split(":calls=") for line in lines if ":calls=" in line)
        return {name: int(rest.split(",")[0]) for name, rest in split}

    def memory(self) -> int:
        lines = dict(l.split(":", 1) for l in self.cli("info", "memory").splitlines() if ":" in l)
        return int(lines["used_memory"])
