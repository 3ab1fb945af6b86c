"""Stop strings: whether the token that a row has just drawn completes one."""

from collections.abc import Callable, Sequence

MARGIN_TOKENS = 4
"""A window of tokens may begin inside a character of several bytes, or lose a leading space."""


class StopStrings:
    """Decodes as little as it can: a row is looked at once for every token it draws."""

    def __init__(self, decode: Callable[[list[int]], str]):
        self._decode = decode
        self._pieces: dict[int, str] = {}

    def window(self, stops: Sequence[str]) -> int:
        """Returns how many last tokens can hold a stop string: each has a byte of it at least."""
        return max(len(stop.encode()) for stop in stops) + MARGIN_TOKENS

    def may_end(self, token: int, stops: Sequence[str]) -> bool:
        """Returns False where the token surely completes none of them, from its own text alone."""
        piece = self._pieces.get(token)
        if piece is None:
            piece = self._pieces[token] = self._decode([token])
        # Part of a character decodes to a replacement; spaces may come from between two tokens.
        return "\ufffd" in piece or any(s[-1] in piece or s[-1].isspace() for s in stops)

    def found(self, tokens: list[int], stops: Sequence[str]) -> bool:
        """Returns whether the text of the last tokens, a window of them, holds a stop string."""
        text = self._decode(tokens)
        return any(stop in text for stop in stops)
