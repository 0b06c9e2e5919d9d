"""CPU time of a system: every process it needs, from /proc, archive threads apart."""

import os
from dataclasses import dataclass
from pathlib import Path

TICK_US = 1_000_000 // os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Cpu:
    """Microseconds of user and system time."""

    system: int
    archive: int
    pids: frozenset[int]

    def since(self, before: "Cpu") -> "Cpu":
        # A process that came or went would take its time with it, and the sum would mean nothing.
        if self.pids != before.pids:
            raise RuntimeError(f"processes changed: {sorted(before.pids)} to {sorted(self.pids)}")
        return Cpu(self.system - before.system, self.archive - before.archive, self.pids)


def parse_stat(text: str) -> tuple[str, int, int]:
    """Name, parent and ticks of a stat line. The name may contain blanks and parentheses."""
    name = text[text.index("(") + 1 : text.rindex(")")]
    rest = text[text.rindex(")") + 2 :].split()
    # Fields 4 (ppid), 14 (utime) and 15 (stime) of proc(5); `rest` starts at field 3.
    return name, int(rest[1]), int(rest[11]) + int(rest[12])


def tree(root: int) -> frozenset[int]:
    """`root` and all its descendants."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            _, parent, _ = parse_stat((entry / "stat").read_text())
        except (FileNotFoundError, ProcessLookupError):
            continue  # some other process, that has just ended
        children.setdefault(parent, []).append(int(entry.name))
    found, todo = set(), [root]
    while todo:
        pid = todo.pop()
        found.add(pid)
        todo += children.get(pid, [])
    return frozenset(found)


def read(roots: list[int]) -> Cpu:
    """What the trees under `roots` have used so far."""
    pids = frozenset(pid for root in roots for pid in tree(root))
    total = archive = 0
    for pid in pids:
        # The process's own line includes threads that have ended, so an archive thread that ended
        # counts as the system's: never the other way round.
        total += parse_stat(Path(f"/proc/{pid}/stat").read_text())[2]
        for task in Path(f"/proc/{pid}/task").iterdir():
            try:
                name, _, ticks = parse_stat((task / "stat").read_text())
            except (FileNotFoundError, ProcessLookupError):
                continue
            if name.startswith("archive"):
                archive += ticks
    return Cpu((total - archive) * TICK_US, archive * TICK_US, pids)
