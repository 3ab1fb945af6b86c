"""Builds the sandbox in C beside the rest, which pyproject.toml describes.

The sandbox is Linux alone. Elsewhere, and where there is no compiler, everything else installs and
`azr.sandbox` says why it cannot be used.

`pip install -e` puts the checkout on Python's path. Setuptools' own way, a finder, is asked after
the path: beside a checkout that is named azr, Python takes this folder for the package.
"""

import platform
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.editable_wheel import editable_wheel
from setuptools.errors import BaseError, CCompilerError

ROOT = Path(__file__).resolve().parent
SOURCES = sorted(str(path) for path in Path("csrc").glob("*.c"))
WARNINGS = ["-Wall", "-Wextra", "-Werror"]


class BuildSandbox(build_ext):
    """Builds what can be built, and says why not where it cannot."""

    def build_extension(self, ext: Extension) -> None:
        try:
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
            optional=True,
        )
    ]


setup(ext_modules=extensions(), cmdclass={"build_ext": BuildSandbox, "editable_wheel": EditInPlace})
