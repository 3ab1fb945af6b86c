"""Runs commands as on a machine with a GPU: `python pretended.py CARD [[MODULE, ARGUMENT...]...]`.

torch is made to say that the card is there, and models that go to it stay where they are. Nothing
else is let through: whoever asks "cuda" for memory of its own gets torch's own error. All commands
run in this process, to load their libraries once; a line with its exit code ends each.
"""

import json
import runpy
import sys
import types

import torch

CARDS = {
    "h100": ("NVIDIA H100 80GB HBM3", (9, 0), 79, 132),
    "a100": ("NVIDIA A100-SXM4-80GB", (8, 0), 79, 108),
}
"""Name, compute capability, GiB and multiprocessors."""


def pretend(card: str) -> None:
    """Changes this process for good."""
    name, (major, minor), gib, processors = CARDS[card]
    properties = types.SimpleNamespace(
        name=name,
        total_memory=gib * 2**30,
        major=major,
        minor=minor,
        multi_processor_count=processors,
    )
    for function, value in {
        "is_available": True,
        "device_count": 1,
        "current_device": 0,
        "get_device_name": name,
        "get_device_capability": (major, minor),
        "get_device_properties": properties,
        "mem_get_info": ((gib - 1) * 2**30, gib * 2**30),
    }.items():
        setattr(torch.cuda, function, lambda *args, value=value, **options: value)
    torch.version.cuda = "13.0"
    move = torch.nn.Module.to

    def stay(module: torch.nn.Module, *args: object, **options: object) -> torch.nn.Module:
        is_device = [torch.device(a).type == "cuda" for a in args if _names_device(a)]
        return module if any(is_device) else move(module, *args, **options)

    torch.nn.Module.to = stay


def _names_device(argument: object) -> bool:
    return isinstance(argument, str | torch.device)


if __name__ == "__main__":
    pretend(sys.argv[1])
    for module, *arguments in json.loads(sys.argv[2]):
        sys.argv = [module, *arguments]
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
            code = 0
        except SystemExit as end:
            code = end.code or 0
        print(f"{module} ended with {code}", flush=True)
