"""First stage of `make gpu`: imports every module of the tree and says what is missing.

    python -m bench.gpu_build OUT.json

A module that needs a package which is not installed is told and is no error: other stages may not
need it. A module that fails for any other reason is one.
"""

import importlib
import importlib.util
import json
import sys
import tomllib
import traceback
from pathlib import Path

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


def main(out: str) -> int:
    """Writes what was found as JSON; 1 where a module is broken."""
    packages = [name for name in required() if importlib.util.find_spec(name) is None]
    names = modules()
    missing, broken = import_all(names)
    print(f"python {sys.version.split()[0]}: {len(names)} modules")
    for package in packages:
        print(f"missing package: {package}")
    for name, package in missing.items():
        print(f"not imported: {name} (needs {package})")
    for name, error in broken.items():
        print(f"BROKEN: {name}\n{error}")
    found = {"modules": len(names), "packages_missing": packages, "modules_missing": missing}
    Path(out).write_text(json.dumps(found | {"broken": broken}, indent=1) + "\n")
    return 1 if broken else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1]))
