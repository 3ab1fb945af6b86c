"""`python -m tests.type_errors`: fails where a file has more type errors than it may.

`type_errors.txt` beside this file says how many each may have; a file that is not named may have
none. `--write` puts down what is found now: where errors are gone, and where a file has moved.
"""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

ALLOWED = Path(__file__).with_suffix(".txt")
CHECK = [sys.executable, "-m", "pyrefly", "check", "--python-interpreter-path", sys.executable]


def main(arguments: list[str]) -> int:
    """Returns the exit code: 1 where errors have risen."""
    done = subprocess.run(
        [*CHECK, "--output-format=json", "--summary=none"],
        cwd=ALLOWED.parent.parent,
        stdout=subprocess.PIPE,
    )
    errors = json.loads(done.stdout)["errors"]
    found = Counter(error["path"] for error in errors)
    if arguments == ["--write"]:
        ALLOWED.write_text("".join(f"{count} {path}\n" for path, count in sorted(found.items())))
        return 0
    lines = (line.split() for line in ALLOWED.read_text().splitlines())
    allowed = Counter({path: int(count) for count, path in lines})
    risen = found - allowed
    for error in errors:
        if error["path"] in risen:
            print("{path}:{line}: {name}: {concise_description}".format_map(error))
    for path in risen:
        print(f"{path}: {found[path]} type errors, where {allowed[path]} were")
    if allowed - found:
        print("type errors are gone: python -m tests.type_errors --write")
    print(f"{found.total()} type errors, {allowed.total()} allowed")
    return int(bool(risen))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
