"""What the evaluation of a suite shows."""

import sys
from collections.abc import Mapping, Sequence

from azr.evaluation.suite import Suite
from azr.evaluation.suite_run import KindResult
from azr.evaluation.table import make_console, make_table, share, with_interval

SHOWN_FAILURES = 8


def print_suite(
    results: Sequence[KindResult], model: str, suite: Suite, failing: Mapping[str, str]
) -> None:
    """Prints a row per kind of item, why answers were not correct, and which never can be."""
    console = make_console()
    console.print(f"model           {model}", soft_wrap=True)
    ks = list(results[0].pass_at)
    title = f"{suite.name} ({suite.layout} layout), with 95% intervals"
    columns = ("kind", "n", "greedy", "well-formed", "sampled", "well-formed")
    table = make_table(title, *columns, *(f"pass@{k}" for k in ks))
    for r in results:
        table.add_row(
            r.kind,
            str(r.items),
            with_interval(r.greedy),
            share(r.greedy_format_rate),
            with_interval(r.sampled) if r.sampled else "-",
            share(r.sampled_format_rate),
            *(share(r.pass_at[k]) for k in ks),
        )
    console.print(table)
    for r in results:
        if r.reasons:
            named = ", ".join(f"{reason} {count}" for reason, count in r.reasons.items())
            console.print(f"not correct     {r.kind}: {named}", soft_wrap=True)
    if failing:
        shown = [f"{name} ({reason})" for name, reason in failing.items()][:SHOWN_FAILURES]
        more = f" and {len(failing) - len(shown)} more" if len(failing) > len(shown) else ""
        console.print(
            f"cannot pass     the suite's own answer fails here: {', '.join(shown)}{more}",
            soft_wrap=True,
        )


def show_progress(done: int, total: int) -> None:
    """Writes how many samples are graded, to stderr."""
    print(f"azr: {done} of {total} samples", file=sys.stderr)
