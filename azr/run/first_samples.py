"""A run that cannot learn says so in its first steps, with what the model wrote."""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence

from azr.config import Config
from azr.run.db import SampleRow

FEW = 16
"""So many samples that are all of no use are enough for a warning; fewer in FIRST_STEPS are."""
FIRST_STEPS = 3
USEFUL = {"propose": ("valid",), "solve": ("correct", "wrong")}
"""The outcomes that are of use, by role."""
SHOWN_CHARS = 300


class FirstSamples:
    """Watches what the model writes in the seeding and the first steps.

    Where none of its proposals is valid, or none of its answers well formed, nothing will be
    learned, and what the model wrote tells why.
    """

    def __init__(self, config: Config, first_step: int = 0, useful: Collection[str] = ()):
        """A resumed run goes on after `first_step`; the roles `useful` were of use before."""
        self._config, self._end = config, first_step + FIRST_STEPS
        self._since = f" after step {first_step}" if first_step else ""
        self._seen: dict[str, list[SampleRow]] = {r: [] for r in USEFUL if r not in useful}
        """The samples of the roles that have brought nothing of use so far."""

    def observe(self, step: int, rows: Iterable[SampleRow]) -> list[str]:
        """Returns the warnings that these samples are the first to call for."""
        for row in rows:
            if row.outcome not in ("unjudged", "held_out") and row.role in self._seen:
                self._seen[row.role].append(row)
        found = []
        for role, seen in list(self._seen.items()):
            is_useful = any(row.outcome in USEFUL[role] for row in seen)
            is_useless = not is_useful and len(seen) >= (1 if step >= self._end else FEW)
            if is_useless:
                found.append(self._warning(role, seen))
            if is_useful or is_useless or step >= self._end:
                del self._seen[role]
        return found

    def _warning(self, role: str, rows: Sequence[SampleRow]) -> str:
        reasons = Counter(row.reason or row.outcome for row in rows)
        what = "proposals is valid" if role == "propose" else "answers is well formed"
        counts = ", ".join(f"{n} {reason}" for reason, n in reasons.most_common())
        lines = [
            f"none of the first {len(rows)} {what}{self._since}: {counts}. What the model wrote:"
        ]
        # Of different reasons first.
        shown = {row.reason: row for row in reversed(rows)}
        examples = list(dict.fromkeys([*shown.values(), *rows]))[:3]
        lines += [f"  {r.type}, {r.reason}, {r.tokens} tokens: {_short(r.text)}" for r in examples]
        return "\n".join([*lines, f"  {self._advice(rows)}"])

    def _advice(self, rows: Sequence[SampleRow]) -> str:
        c = self._config
        cut = sum(row.finish == "length" for row in rows)
        malformed = sum(row.outcome == "malformed" for row in rows)
        longer = "allow longer ones (--rollout.max-new-tokens"
        if c.rollout.max_new_tokens:
            longer += f", now {c.rollout.max_new_tokens}"
        if c.warmup.loaded or not c.model.path:
            format_advice = f"raise --warmup.steps (now {c.warmup.steps})"
        else:
            format_advice = (
                f"use another --task.style (now {c.task.style}) or --model, or teach it the format "
                "first: --warmup.loaded True --warmup.steps 20 --warmup.lr 1e-5"
            )
        if 2 * cut > len(rows):
            return (
                f"Most did not end in time: {longer}); where they would never end, {format_advice}"
            )
        if 2 * malformed > len(rows):
            return f"Most do not keep to the answer format: {format_advice}"
        return (
            "The form is right, but no task is valid: begin with tasks that the family draws "
            "(--selfplay.seed-source environment), show more of them (--task.references, now "
            f"{c.task.references}), or use a stronger --model"
        )


def _short(text: str) -> str:
    shown = repr(text)
    half = SHOWN_CHARS // 2
    return shown if len(shown) <= SHOWN_CHARS else f"{shown[:half]} ... {shown[-half:]}"
