"""First stage of `make gpu`: versions; imports every module of the tree and says what is missing.

    python -m bench.gpu_build --findings FILE

A module that needs a package which is not installed is told and is no error: other stages may not
need it. A module that fails for any other reason is one, and so is a Numba that cannot compile
beside the numpy that is here.
"""

import argparse
import importlib
import importlib.util
import sys
import tomllib
import traceback
from pathlib import Path

from bench.gpu_record import Findings
from bench.record import versions

ROOT = Path(__file__).resolve().parent.parent


def modules() -> list[str]:
    """The importable modules of the project, packages first."""
    names = []
    for folder in (ROOT / "azr", ROOT / "kernels" / "rlvr_kernels"):
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder.parent).with_suffix("").parts
            if parts[-1] != "__main__":
                names.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return sorted(names)


def required() -> list[str]:
    """The run-time requirements as names to import."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = [line.split(";")[0].strip() for line in project["dependencies"]]
    return [name.split(">")[0].split("=")[0].strip().replace("-", "_") for name in names]


def import_all(names: list[str]) -> tuple[dict[str, str], dict[str, str]]:
    """({module: package it misses}, {module: error}) of the modules that cannot be imported."""
    missing, broken = {}, {}
    for name in names:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name and error.name.partition(".")[0] in ("azr", "rlvr_kernels"):
                broken[name] = str(error)
            else:
                missing[name] = error.name or str(error)
        except Exception:
            broken[name] = traceback.format_exc(limit=-3)
    return missing, broken


def numba_error() -> str | None:
    """Why Numba cannot invert 3 modulo 7 here; None where it can, or is not installed."""
    if importlib.util.find_spec("numba") is None:
        return None
    try:
        modular = importlib.import_module("azr.modular")
        found = int(modular.invert(3, 7))
        return None if found == 5 else f"the inverse of 3 modulo 7 is 5, Numba found {found}"
    except Exception:
        return traceback.format_exc(limit=-3)


def main(arguments: list[str] | None = None) -> int:
    """Tells what was found; 1 where a module is broken."""
    parser = argparse.ArgumentParser(prog="bench.gpu_build")
    parser.add_argument("--findings", type=Path, required=True)
    findings = Findings(parser.parse_args(arguments).findings)
    here = versions()
    print(" ".join(f"{package} {version}" for package, version in here.items()))
    packages = [name for name in required() if importlib.util.find_spec(name) is None]
    findings.note("packages missing", packages)
    names = modules()
    missing, broken = import_all(names)
    if error := numba_error():
        broken["numba"] = error
    print(f"python {sys.version.split()[0]}: {len(names)} modules")
    for package in packages:
        print(f"missing package: {package}")
    for name, package in missing.items():
        print(f"not imported: {name} (needs {package})")
    for name, error in broken.items():
        print(f"BROKEN: {name}\n{error}")
    findings.note("modules", len(names))
    findings.note("modules missing", [f"{name}: {package}" for name, package in missing.items()])
    findings.note("broken", broken)
    return 1 if broken else 0


if __name__ == "__main__":
    raise SystemExit(main())
