"""A GPU that is not there: Triton's own launcher runs to its last step, and nothing is launched.

A launch on CUDA binds and specialises its arguments, compiles for the chip down to machine code,
compares the globals that the kernel read, and holds its shared memory and threads against the
device, all in Python. Compiling ahead of time and interpreting go past most of that. Here a driver
of our own gives the figures of one chip, loads the code and launches nothing.

Tensors are torch's fake ones. They have no memory, so a case may have the size of a real one; and
no values, so whatever would make the host wait for the device raises. What is patched stays so,
and Triton must not have been told to interpret: use it in a process of its own (launches.py).
"""

from contextlib import contextmanager
from types import SimpleNamespace
from typing import NamedTuple

import torch
from rlvr_kernels import configs, scalars
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

# Where a fake allocation pretends to begin: torch aligns those of CUDA to 512 bytes.
ADDRESS = 0x7F0000000000
MAX_GRID = (2**31 - 1, 65535, 65535)


class Launch(NamedTuple):
    """What would have been launched."""

    kernel: str
    grid: tuple[int, int, int]
    shared_bytes: int


class Driver:
    """The driver that Triton asks, for one chip; `chip` is a row of `aot.CHIPS`."""

    def __init__(self, capability: int, chip: dict[str, int]):
        self.target = GPUTarget("cuda", capability, 32)
        self.launches: list[Launch] = []
        self.is_on_device = False
        self.utils = SimpleNamespace(
            get_device_properties=lambda device: dict(
                max_shared_mem=chip["shared_block"],
                max_num_regs=chip["registers"],
                multiprocessor_count=chip["processors"],
                warpSize=32,
            ),
            load_binary=_load_binary,
        )

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        if not self.is_on_device:
            raise AssertionError("launched on the current device, not on that of the tensors")
        return self.target.arch  # kernels keep what they compiled by device

    def get_current_stream(self, device: int | None = None) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cuda", 0)

    def launcher_cls(self, source, metadata):
        """The call that ends a launch: it looks at what CUDA would refuse and takes a note."""

        def launch(x, y, z, stream, function, packed, launch_metadata, enter, leave, *arguments):
            for size, limit in zip((x, y, z), MAX_GRID, strict=True):
                assert 0 < size <= limit, f"{metadata.name}: invalid grid {(x, y, z)}"
            for argument in arguments:
                is_real = isinstance(argument, torch.Tensor) and not isinstance(
                    argument, FakeTensor
                )
                assert not is_real, f"{metadata.name}: cannot access a tensor of the CPU"
            self.launches.append(Launch(metadata.name, (x, y, z), metadata.shared))

        return launch


def _load_binary(name: str, binary: bytes, shared_bytes: int, device: int):
    """(module, function, registers, spills, most threads a block) of a kernel that is one."""
    assert binary[:4] == b"\x7fELF", f"{name}: not machine code"
    return 1, 1, 0, 0, 1024


class Bodies(TorchDispatchMode):
    """Runs the body of each custom operator, where fake tensors alone take its shapes for it."""

    def __init__(self, modules):
        super().__init__()
        ops = [v for m in modules for v in vars(m).values() if hasattr(v, "_opoverload")]
        self.bodies = {op._opoverload: op._init_fn for op in ops}
        self.waits = False

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in self.bodies:
            with self:  # its own operations too
                return self.bodies[function](*args, **(kwargs or {}))
        if self.waits and function is torch.ops.aten.nonzero.default:
            # How many rows a mask leaves is data: here two in three.
            rows = args[0].numel()
            return args[0].new_empty((rows - rows // 3, args[0].dim()), dtype=torch.int64)
        return function(*args, **(kwargs or {}))


@contextmanager
def pretend(capability: int, chip: dict[str, int], modules):
    """Inside, `modules` of rlvr_kernels meet one GPU of that chip; yields (driver, bodies).

    With `bodies.waits` the count of masked rows may be read on the host; else nothing may.
    """
    pretended = Driver(capability, chip)
    driver.set_active(pretended)
    configs._generation_of.cache_clear()

    @contextmanager
    def on_device(device):
        before, pretended.is_on_device = pretended.is_on_device, True
        try:
            yield
        finally:
            pretended.is_on_device = before

    torch.cuda.device = on_device
    # Questions that the CUDA runtime answers, with the answers of the chip.
    torch.cuda.get_device_capability = lambda device=None: divmod(capability, 10)
    torch.cuda.get_device_properties = lambda device=None: SimpleNamespace(
        multi_processor_count=chip["processors"]
    )
    # A fake tensor with a gradient has to be one of the CPU in a build without CUDA: autograd asks
    # the device's runtime for a guard. These three keep it on the path of a CUDA tensor.
    FakeTensor.is_cuda = property(lambda tensor: True)
    FakeTensor.data_ptr = lambda tensor: ADDRESS + tensor.storage_offset() * tensor.element_size()
    numbers: dict[int, list[float | None]] = {}  # a fake tensor holds none

    def packed(given):
        numbers[len(given)] = given
        return scalars.packed(given)

    for module in modules:
        if hasattr(module, "unpacked"):
            module.packed, module.unpacked = packed, lambda fake: numbers[len(fake)]
        if hasattr(module, "wants_range_check"):
            module.wants_range_check = lambda validate, device: validate == "sync"
        if hasattr(module, "_triton_problem"):
            module._triton_problem = lambda device: None
    bodies = Bodies(modules)
    with FakeTensorMode(), bodies:
        yield pretended, bodies
