"""The processes of a measurement: started pinned to a core, waited for, stopped by their ids."""

import http.client
import os
import signal
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

SYSTEM_CORE, DRIVER_CORE = 0, 1
PEERS = Path(__file__).resolve().parent.parent / "peers"
BODY = ('{"data":[{"url":"' + "x" * 400)[: 256 - 4] + '"}]}'


class Failed(Exception):
    """The run has no result, and this is why."""


def check_machine(packages: dict[str, str]) -> None:
    """Ends the program unless these commands, each of a package, and two cores are there."""
    absent = [name for name in packages if not shutil.which(name)]
    if absent:
        names = " ".join(sorted({packages[name] for name in absent}))
        sys.exit(f"not installed: {', '.join(absent)}; on Debian: apt-get install {names}")
    if not {SYSTEM_CORE, DRIVER_CORE} <= os.sched_getaffinity(0):
        sys.exit("needs cores 0 and 1: one for the system, one for driver and backend")


def free_ports(count: int) -> list[int]:
    """Ports of the loopback that nobody listens on now, all different."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def fill(template: str, to: Path, **values: object) -> Path:
    """A committed configuration with its @PLACES@ filled in."""
    text = (PEERS / template).read_text()
    for name, value in values.items():
        text = text.replace(f"@{name.upper()}@", str(value))
    to.write_text(text)
    return to


def get(port: int, path: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def post(port: int, path: str, headers: dict, body: str) -> tuple[int, str | None, str]:
    """Status, receipt and body of the answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("POST", path, body, {"Content-Type": "application/json", **headers})
        answer = connection.getresponse()
        return answer.status, answer.getheader("Tollgate-Receipt"), answer.read().decode()
    finally:
        connection.close()


class Process:
    """A server pinned to a core."""

    def __init__(self, name: str, command: list[str], core: int | str, log: Path, env: dict | None = None):
        self.name, self.log = name, log
        with log.open("w") as out:
            self.child = subprocess.Popen(
                ["taskset", "-c", str(core), *command],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(env or {})},
            )

    @property
    def pid(self) -> int:
        """taskset becomes the command, so its id is the command's."""
        return self.child.pid

    def wait_for(self, port: int, path: str, seconds: float = 60) -> None:
        """Until `path` answers 200."""
        def answers() -> bool:
            try:
                return get(port, path)[0] == 200
            except OSError:
                return False

        self.wait_until(answers, seconds)

    def wait_until(self, ready: Callable[[], bool], seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self.child.poll() is not None:
                raise Failed(f"{self.name} ended with {self.child.returncode}:\n{self.tail()}")
            if ready():
                return
            time.sleep(0.05)
        raise Failed(f"{self.name} is not ready after {seconds} s:\n{self.tail()}")

    def stop(self, how: int = signal.SIGTERM, seconds: float = 60) -> int:
        if self.child.poll() is None:
            self.child.send_signal(how)
            try:
                self.child.wait(seconds)
            except subprocess.TimeoutExpired:
                self.child.kill()
                self.child.wait()
        return self.child.returncode

    def tail(self) -> str:
        return self.log.read_text(errors="replace")[-2000:]


def start_nginx(template: str, name: str, core: int, dir: Path, **values: object) -> Process:
    dir.mkdir()
    config = fill(template, dir / "nginx.conf", dir=dir, body=BODY, **values)
    command = ["nginx", "-c", str(config), "-e", str(dir / "error.log")]
    return Process(name, command, core, dir / "log")


def backend_requests(port: int) -> int:
    """How many requests the backend has seen, this one included."""
    status, text = get(port, "/status")
    if status != 200:
        raise Failed(f"the backend's status page answered {status}")
    # The third line: accepted, handled, requests.
    return int(text.splitlines()[2].split()[2])
