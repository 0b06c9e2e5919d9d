"""Figures of several rounds."""

import statistics

QUOTABLE = 5


def spread(values: list[float]) -> dict:
    middle = statistics.median(values)
    return {"median": middle, "min": min(values), "max": max(values), "values": values}


def line(values: dict, unit: str = "") -> str:
    width = (values["max"] - values["min"]) / values["median"]
    return (f"median {values['median']:.3f}{unit}, {values['min']:.3f} to {values['max']:.3f} "
            f"(spread {width:.1%})")
