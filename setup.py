"""Builds the sandbox in C beside the rest, which pyproject.toml describes.

The sandbox is Linux alone. Elsewhere, and where there is no compiler, everything else installs and
`azr.sandbox` says why it cannot be used.

`pip install -e` puts the checkout on Python's path. Setuptools' own way, a finder, is asked after
the path: beside a checkout that is named azr, Python takes this folder for the package.
"""

import platform
import sys
import tempfile
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.editable_wheel import editable_wheel
from setuptools.errors import BaseError, CCompilerError

ROOT = Path(__file__).resolve().parent
SOURCES = sorted(str(path) for path in Path("csrc").glob("*.c"))
WARNINGS = ["-Wall", "-Wextra", "-Werror"]
# Of the OpenSSF's Compiler Options Hardening Guide for C and C++ (best.openssf.org); of each line
# the first that the compiler and its libc take.
HARDENING = (
    # Bounds of what libc's functions write, known when they run (3) or when they are compiled (2).
    (["-U_FORTIFY_SOURCE", "-D_FORTIFY_SOURCE=3"], ["-U_FORTIFY_SOURCE", "-D_FORTIFY_SOURCE=2"]),
    # A canary below the return address of every function with an array or an address taken.
    (["-fstack-protector-strong"],),
    # Large frames touch each of their pages: none jumps over the guard page.
    (["-fstack-clash-protection"],),
    # Where calls and jumps may land: x86-64, aarch64.
    (["-fcf-protection=full"], ["-mbranch-protection=standard"]),
)
# Its tables of addresses are filled in before it runs, and read-only from then on.
LINKING = ["-Wl,-z,relro", "-Wl,-z,now"]


class BuildSandbox(build_ext):
    """Builds what can be built, and says why not where it cannot."""

    def takes(self, flags: list[str]) -> bool:
        """Whether a file compiles with these flags and without a warning."""
        with tempfile.TemporaryDirectory() as folder:
            probe = Path(folder, "probe.c")
            probe.write_text("#include <string.h>\nint probe(void) { return 0; }\n")
            try:
                self.compiler.compile(
                    [str(probe)], folder, extra_postargs=["-O2", "-Werror", *flags]
                )
            except CCompilerError:
                return False
        return True

    def build_extension(self, ext: Extension) -> None:
        try:
            for choices in HARDENING:
                ext.extra_compile_args += next(filter(self.takes, choices), [])
            try:
                super().build_extension(ext)
            except CCompilerError:
                # A warning that only a newer compiler knows must not cost anybody the sandbox.
                ext.extra_compile_args.remove("-Werror")
                super().build_extension(ext)
                print(
                    "azr: the sandbox was built with warnings; please report them", file=sys.stderr
                )
        except (BaseError, CCompilerError, OSError) as error:
            if self.inplace and not self.editable_mode:
                raise  # somebody asked for the extension itself
            print(f"azr: the sandbox is not built: {error}", file=sys.stderr)


class OnThePath:
    """How an editable wheel leads to the checkout: by a file of folders for Python's path."""

    def __call__(self, wheel, files, mapping) -> None:
        wheel.writestr("__editable__.azr.pth", f"{ROOT}\n{ROOT / 'kernels'}\n")

    def __enter__(self):
        return self

    def __exit__(self, *error) -> None:
        pass


class EditInPlace(editable_wheel):
    """Leads to the checkout by the path."""

    def _select_strategy(self, name, tag, build_lib):
        return OnThePath()


def extensions() -> list[Extension]:
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64"):
        print(
            f"azr: the sandbox is not built: it needs Linux on x86-64 or aarch64, this is "
            f"{sys.platform} on {platform.machine()}",
            file=sys.stderr,
        )
        return []
    return [
        Extension(
            "azr._sandbox",
            SOURCES,
            depends=["csrc/sandbox.h"],
            extra_compile_args=["-std=gnu11", "-O2", "-fvisibility=hidden", *WARNINGS],
            extra_link_args=LINKING,
            optional=True,
        )
    ]


setup(ext_modules=extensions(), cmdclass={"build_ext": BuildSandbox, "editable_wheel": EditInPlace})
