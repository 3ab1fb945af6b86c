"""Runs the corpus and prints layers, verdicts and complaints as JSON; see `tests.environments`."""

import json
import os
import sys

from azr.sandbox import Sandbox, corpus


def main() -> None:
    os.environ["AZR_HOSTILE_SECRET"] = "not for programs"
    programs = corpus.load()
    with Sandbox(workers=2, limits=corpus.LIMITS) as sandbox:
        results, complaints = corpus.run(sandbox, programs)
        layers = sandbox.layers()
    verdicts = {
        program.name: [result.status, result.error, result.repr]
        for program, result in zip(programs, results, strict=True)
    }
    leaked = [name for name, verdict in verdicts.items() if "not for programs" in verdict[2]]
    complaints += [f"{name} has read the environment" for name in leaked]
    json.dump({"layers": layers, "verdicts": verdicts, "complaints": complaints}, sys.stdout)


if __name__ == "__main__":
    main()
