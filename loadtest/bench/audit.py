"""The audit: what the driver got, what the backend saw and what the books say are one number."""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal

from .system import Failed, backend_requests, get

SAMPLE = re.compile(r"^(\w+)(?:\{(.*)\})? (\S+)")
LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True)
class Books:
    """What the metrics say was charged, as they stand."""

    outcomes: dict[str, Decimal] = field(default_factory=dict)
    credits: Decimal = Decimal(0)
    in_flight: Decimal = Decimal(0)
    lag: Decimal = Decimal(0)

    def since(self, before: "Books") -> "Books":
        names = self.outcomes.keys() | before.outcomes.keys()
        difference = {n: self.outcomes.get(n, 0) - before.outcomes.get(n, 0) for n in names}
        moved = {name: value for name, value in difference.items() if value}
        return Books(moved, self.credits - before.credits, self.in_flight, self.lag)


def parse_metrics(text: str) -> Books:
    """Sums over all labels but the outcome."""
    outcomes: dict[str, Decimal] = {}
    sums = {"tollgate_credits_captured_total": Decimal(0)}
    sums |= {"tollgate_in_flight_requests": Decimal(0), "tollgate_ledger_lag_records": Decimal(0)}
    for line in text.splitlines():
        sample = SAMPLE.match(line)
        if not sample:
            continue
        name, labels, value = sample[1], dict(LABEL.findall(sample[2] or "")), sample[3]
        if name == "tollgate_requests_total":
            outcome = labels.get("outcome", "")
            outcomes[outcome] = outcomes.get(outcome, Decimal(0)) + Decimal(value)
        elif name in sums:
            sums[name] += Decimal(value)
    return Books(outcomes, *sums.values())


def read_books(ops: int) -> Books:
    status, text = get(ops, "/metrics")
    if status != 200:
        raise Failed(f"/metrics answered {status}")
    return parse_metrics(text)


@dataclass
class Marks:
    """The counters before a run."""

    backend: int
    books: Books | None


def mark(backend: int, ops: int | None) -> Marks:
    return Marks(backend_requests(backend), read_books(ops) if ops else None)


def compare(
    answered: int, units: int, seen: int, books: Books | None, outcome: str | None
) -> list[str]:
    """What differs, in words; nothing where all is one number."""
    wrong = []
    served = 0 if outcome == "refused" else answered
    if seen != served:
        wrong.append(f"the backend saw {seen} requests, the driver got {served} answers from it")
    if books is None or outcome is None:
        return wrong
    if books.outcomes != {outcome: answered}:
        told = {name: int(value) for name, value in books.outcomes.items()}
        wrong.append(f"the metrics say {told}, the driver got {answered} answers")
    charged = units if outcome == "captured" else 0
    if books.credits != charged:
        wrong.append(f"{books.credits} credits were captured, {charged} were asked for")
    return wrong


def audit(
    before: Marks, backend: int, ops: int | None, answered: int, units: int, outcome: str | None
) -> None:
    """Compares a run that is over. The driver drains before it ends, so nothing is in flight but
    what the gateway still settles: for that it may take a moment."""

    def look() -> list[str]:
        nonlocal status_reads
        # The status page counts the reading of it.
        status_reads += 1
        seen = backend_requests(backend) - before.backend - status_reads
        books = read_books(ops).since(before.books) if ops and before.books else None
        return compare(answered, units, seen, books, outcome)

    status_reads = 0
    wrong = settle(look)
    if wrong:
        raise Failed("AUDIT: " + "; ".join(wrong))


def settle(look: Callable[[], list[str]], seconds: float = 5) -> list[str]:
    """Looks until nothing is wrong, or the time is over."""
    deadline = time.monotonic() + seconds
    while (wrong := look()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return wrong
