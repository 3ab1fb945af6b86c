"""How numbers read."""

import math


def percent(value: float | None) -> str:
    """Returns a share as a percentage: 97%, 4.3%, 0%; a dash for none."""
    if value is None or math.isnan(value):
        return "–"
    hundred = 100 * value
    # One decimal where it says something: below 10%, and above 99% where it is not all.
    if 0.05 <= hundred < 9.95 or 99.05 <= hundred < 99.95:
        return f"{hundred:.1f}%"
    return f"{hundred:.0f}%"


def number(value: float | None) -> str:
    """Returns a number with three significant digits; thousands as k, M, G."""
    if value is None or math.isnan(value):
        return "–"
    size = abs(value)
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if size >= limit:
            return f"{value / (1e3 if unit == 'k' else limit):.3g}{unit}"
    if size >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.3g}" if size >= 1e-3 else f"{value:.2g}"


def duration(seconds: float | None) -> str:
    """Returns a time: 0.21 s, 48 s, 2 min 4 s, 3 h 5 min."""
    if seconds is None or math.isnan(seconds):
        return "–"
    if seconds < 10:
        return f"{seconds:.2g} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60} min"


def plain(name: str) -> str:
    """Returns a name of the log as words: heldout_pair -> held-out pair."""
    return name.replace("_", " ").replace("heldout", "held-out")
