"""Python literals out of model text: values, or a reason why not."""

import ast
import warnings

from azr.tasks.envelope import MAX_ANSWER_CHARS, MAX_NESTING, nesting


class Malformed(ValueError):
    """A text that is no literal within the bounds; the message is a named reason."""


def parse_literal(text: str) -> object:
    """Returns the value of a Python literal; nothing is executed.

    Raises Malformed for anything else, and for what is too long or too deep to be looked at.
    """
    if len(text) > MAX_ANSWER_CHARS:
        raise Malformed("answer_too_long")
    if nesting(text) > MAX_NESTING:
        raise Malformed("answer_too_deep")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an odd escape in a string, say
            return ast.literal_eval(text.strip())
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError) as error:
        raise Malformed("not_a_literal") from error
