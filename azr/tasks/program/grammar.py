"""Random programs of one to three statements over integers, lists and texts.

They teach the tiny model what a program looks like (`warmup_rows`), they are what it is tested on
(`eval_tasks`), and they top up a buffer that a model could not fill (`seed_tasks`). Every variable
is used, and every program runs on the inputs drawn for it.
"""

from dataclasses import dataclass
from random import Random

from azr.tasks.program.compact import DIGITS, LETTERS, VARIABLES

LENGTH = 3
"""Items of a random input list or text."""

KINDS = ("list", "str", "int")
"""Of inputs."""

_SLICES = ("{}[::-1]", "{}[1:]", "{}[:-1]", "{}[:2]")


@dataclass(frozen=True, slots=True)
class _Form:
    """What a variable holds; an "element" is an item of a list or a text."""

    kind: str
    length: int


_ELEMENT = _Form("element", 1)


def draw_input(random: Random, kind: str) -> int | str | list:
    """Returns a random input: an "int", or a "list" or "str" of three items."""
    if kind == "int":
        return int(random.choice(DIGITS))
    return _sequence(random, kind, LENGTH)


def _sequence(random: Random, kind: str, length: int) -> str | list:
    if kind == "str":
        return "".join(random.choice(LETTERS)[1] for _ in range(length))
    return [int(random.choice(DIGITS)) for _ in range(length)]


def draw_inputs(random: Random, kind: str, count: int) -> list[int | str | list]:
    """Returns distinct random inputs; of integers, which are few, the rest are lists."""
    found: list[int | str | list] = []
    while len(found) < count:
        is_used_up = kind == "int" and len(found) >= len(DIGITS)
        value = draw_input(random, "list" if is_used_up else kind)
        if value not in found:
            found.append(value)
    return found


def draw_kind(random: Random) -> str:
    """Returns the kind of a random input."""
    return random.choices(KINDS, (0.6, 0.3, 0.1))[0]


def draw_value(random: Random) -> int | str | list:
    """Returns a random answer, drawn without a look at any program."""
    kind = random.choices(("int", "str", "list"), (0.4, 0.3, 0.3))[0]
    if kind == "int":
        return int(random.choice(DIGITS))
    return _sequence(random, kind, random.choices((1, 2, 3), (0.6, 0.25, 0.15))[0])


def draw_program(random: Random, kind: str) -> str:
    """Returns the Python text of a random program for inputs of this kind."""
    statements = random.choices((1, 2, 3), (0.55, 0.28, 0.17))[0]
    while True:
        scope = {"a": _Form(kind, LENGTH)}
        lines, used = ["def f(a):"], set()
        for number in range(1, statements + 1):
            is_last = number == statements
            text, form = _draw_expression(random, scope, is_last)
            used |= {v for v in scope if v in _names(text)}
            if is_last:
                lines.append(f"    return {text}")
            else:
                lines.append(f"    {VARIABLES[number]} = {text}")
                scope[VARIABLES[number]] = form
        if used == set(scope):
            return "\n".join(lines) + "\n"


def _names(text: str) -> set[str]:
    for mark in "()[],:":
        text = text.replace(mark, " ")
    return set(text.split())


def _draw_expression(random: Random, scope: dict[str, _Form], is_last: bool) -> tuple[str, _Form]:
    """Returns (text, what it is). The last statement mostly gives one item."""
    sequences = [v for v, form in scope.items() if form.kind in ("list", "str")]
    pick = random.random()
    if sequences and pick < (0.97 if is_last else 0.7):
        variable = random.choice(sequences)
        text, form = variable, scope[variable]
        if random.random() < 0.2 and form.length > 1:
            text, form = _draw_slice(random, text, form)
        if random.random() < (0.96 if is_last else 0.5):
            return _draw_element(random, text, form.length), _ELEMENT
        return _draw_slice(random, text, form)
    items = [_draw_item(random, scope, sequences) for _ in range(random.randint(1, 2))]
    if len(items) == 2 and (is_last or pick > 0.92):
        return f"{random.choice(('max', 'min'))}({', '.join(items)})", _ELEMENT
    return f"[{', '.join(items)}]", _Form("list", len(items))


def _draw_element(random: Random, text: str, length: int) -> str:
    if random.random() < 0.1:
        return f"{random.choice(('max', 'min'))}({text})"
    return text + random.choice(("[-1]", "[0]", "[1]", "[2]")[: 1 + length])


def _draw_slice(random: Random, text: str, form: _Form) -> tuple[str, _Form]:
    if form.kind == "list" and random.random() < 0.2:
        return f"sorted({text})", form
    piece = random.choice(_SLICES if form.length > 1 else _SLICES[:1])
    length = {"{}[::-1]": form.length, "{}[:2]": min(form.length, 2)}.get(piece, form.length - 1)
    return piece.format(text), _Form(form.kind, length)


def _draw_item(random: Random, scope: dict[str, _Form], sequences: list[str]) -> str:
    elements = [v for v, form in scope.items() if form.kind in ("int", "element")]
    pick = random.random()
    if elements and pick < 0.7:
        return random.choice(elements)
    if sequences and pick < 0.9:
        variable = random.choice(sequences)
        return variable + random.choice(("[0]", "[1]", "[2]")[: scope[variable].length])
    return random.choice(DIGITS)
