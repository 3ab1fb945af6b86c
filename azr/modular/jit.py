"""The decorator of the compiled loops: Numba's, with a disk cache that nothing depends on.

Where Numba's own cache finds no folder it can write, a full disk or a damaged file, it raises at
import or in the first call. Here the function is compiled anew then, and a warning says so once.
"""

import hashlib
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from numba import njit
from numba.core.caching import FunctionCache, IndexDataCacheFile

_warned: list[str] = []


def jit(function: Callable) -> Callable:
    """Compiles a function when it is first called, or loads it from the cache."""
    # error_model="numpy": no hidden branch on a zero divisor inside the loops. fastmath stays off:
    # the proofs need every operation rounded as written.
    compiled = njit(nogil=True, error_model="numpy")(function)
    try:
        # As njit(cache=True) sets it; Numba's annotations name no attribute.
        compiled._cache = _Cache(function)  # pyrefly: ignore[missing-attribute]
    except Exception as error:  # no folder: the RuntimeError of Numba, or what the folder raised
        _warn(error)
    return compiled


def _warn(error: Exception) -> None:
    if not _warned:
        _warned.append(str(error))
        warnings.warn(
            f"Numba's cache cannot be used ({type(error).__name__}: {error}); azr.modular is "
            "compiled anew, which takes seconds. NUMBA_CACHE_DIR names a folder for it",
            RuntimeWarning,
            stacklevel=3,
        )


class _CheckedFile(IndexDataCacheFile):
    """Machine code with its digest behind the pickle: damaged, it could do anything."""

    def _dump(self, obj):
        data = super()._dump(obj)
        return data + hashlib.sha256(data).digest()

    def _load_data(self, name):
        data = Path(self._data_path(name)).read_bytes()
        if hashlib.sha256(data[:-32]).digest() != data[-32:]:
            raise ValueError(f"{name} is damaged")
        return super()._load_data(name)


class _Cache(FunctionCache):
    """A cache whose failures cost the time of a compilation, and nothing else."""

    def __init__(self, py_func):
        super().__init__(py_func)
        stamp = self._impl.locator.get_source_stamp()
        self._cache_file = _CheckedFile(self._cache_path, self._impl.filename_base, stamp)

    def load_overload(self, sig, target_context):
        try:
            return super().load_overload(sig, target_context)
        except Exception as error:  # a damaged index raises whatever its bytes happen to mean
            _warn(error)
            with suppress(Exception):
                self.flush()  # so that the next process finds what this one saves
            return None

    def save_overload(self, sig, data):
        try:
            super().save_overload(sig, data)
        except Exception as error:
            _warn(error)
