"""What a CUDA device would be asked to do, asked of fake tensors: counted, and refused where it
could not be done.

A fake tensor has a shape, a type and a device, and no numbers. torch checks every operator's
arguments and devices as it would for real ones; here the rest is added: what is launched, when the
host would wait for the device, and what may not happen while a graph is captured.
"""

import gc
import sys
import time
import types
from collections import Counter
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import rlvr_kernels
import torch
from rlvr_kernels import scalars
from torch._library.custom_ops import CustomOpDef
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils import _foreach_utils
from torch.utils._python_dispatch import TorchDispatchMode

PROCESSORS, GIB = 132, 2**30

# They make or rename memory and launch nothing, as views do.
LAUNCHLESS = {
    "_reshape_alias", "_unsafe_view", "detach", "empty", "empty_like", "empty_strided",
    "is_pinned", "lift_fresh", "new_empty", "new_empty_strided", "_pin_memory", "record_stream",
}  # fmt: skip
# Their result's size or value is on the device, and the host needs it.
READS = {
    "_local_scalar_dense", "_unique2", "bincount", "equal", "is_nonzero", "masked_select",
    "nonzero", "unique_dim",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Capture:
    """A graph that was captured."""

    launches: Counter
    mode: str
    """What calls of other threads may do to it."""
    collects: bool
    """Whether a garbage collection could have come in between."""


class FakeDevice:
    """A context in which tensors are fake, on "cuda" or not, and "cuda" looks like an H100."""

    def __init__(self, monkeypatch):
        self.monkeypatch = monkeypatch
        self.launches: Counter[str] = Counter()
        self.waits: list[str] = []
        """Why the host waited for the device, in order."""
        self.is_capturing = False
        self.captures: list[Capture] = []
        self.capture_s = 0.0
        """What a capture takes."""
        self.order: list[str] = []
        """Captures, replays and recorded events."""
        self.uploads = 0
        """Copies from the host to the device."""
        self.emptied = 0
        """Calls of torch.cuda.empty_cache."""
        self._stack = ExitStack()

    def __enter__(self) -> "FakeDevice":
        # It would start the device that `is_available` now promises.
        self.monkeypatch.setattr(FakeTensorMode, "avoid_device_init", True)
        _pretend_cuda(self.monkeypatch, self)
        _run_kernels(self.monkeypatch, self)
        self._stack.enter_context(FakeTensorMode())
        self._stack.enter_context(Watch(self))
        return self

    def __exit__(self, *error):
        self._stack.close()

    @contextmanager
    def counted(self):
        """Yields what is launched within: a Counter by operator."""
        before, found = self.launches.copy(), Counter()
        yield found
        found.update(self.launches - before)

    def launched(self, name: str) -> None:
        self.launches[name] += 1

    def waited(self, why: str) -> None:
        assert not self.is_capturing, f"while a graph is captured: {why}"
        frame = sys._getframe(1)
        while frame and not any(part in frame.f_code.co_filename for part in ("/azr/", "/rlvr_")):
            frame = frame.f_back
        code = frame.f_code if frame else self.waited.__code__
        self.waits.append(f"{why}: {Path(code.co_filename).name}, {code.co_name}")


class Watch(TorchDispatchMode):
    """Sees every operator before the fake tensors do."""

    def __init__(self, device: FakeDevice):
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func.namespace == "prim":
            return func(*args, **kwargs)
        if func.namespace == "aten" and func._can_decompose():
            # Under inference mode such operators come here whole.
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        name = func._schema.name.split("::")[1]
        tensors = list(_tensors((args, kwargs)))
        on_cuda = any(t.device.type == "cuda" for t in tensors)
        if name == "_pin_memory":
            return _pinned(args[0].clone())
        if name == "_local_scalar_dense":
            if on_cuda:
                self.device.waited("a number is read")
            # An error of zero on the device; on the host any number that can be divided by.
            return (0.0 if on_cuda else 1.0) if args[0].dtype.is_floating_point else 0
        if name in READS and on_cuda:
            self.device.waited(f"{name} reads the device")
            if name == "nonzero":  # of a fake tensor nobody knows how many; all of them
                return args[0].new_zeros((args[0].numel(), args[0].dim()), dtype=torch.int64)
        if name in ("_to_copy", "copy_"):
            self._check_copy(name, args, kwargs)
        elif func.namespace == "rlvr_kernels":
            pass  # its numbers are a tensor of the host, and stay there
        elif on_cuda and any(t.device.type == "cpu" and t.dim() for t in tensors):
            # An index on the host is copied, and waited for, before it is used.
            assert name in ("index", "index_put_", "index_put", "_index_put_impl_"), (
                f"{name}: tensors of the host among those of the device"
            )
            self.device.waited(f"{name} copies an index to the device")
        if name in ("index", "index_put_") and on_cuda:
            for index in args[1]:
                if index is not None and index.dtype == torch.bool:
                    self.device.waited(f"{name} by a mask reads the device")
        result = func(*args, **kwargs)
        if kwargs.get("pin_memory") or func.is_view and getattr(args[0], "was_pinned", False):
            _pinned(result)
        on_cuda = on_cuda or any(t.device.type == "cuda" for t in _tensors(result))
        is_custom = func.namespace in ("rlvr_kernels", "torch_attn")  # its body's kernels count
        if on_cuda and not (func.is_view or name in LAUNCHLESS or is_custom):
            self.device.launched(name)
        return result

    def _check_copy(self, name, args, kwargs) -> None:
        source = args[1] if name == "copy_" else args[0]
        target = args[0].device if name == "copy_" else torch.device(kwargs.get("device") or "cpu")
        if name == "_to_copy" and kwargs.get("device") is None:
            return
        is_async = kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2])
        pair = source.device.type, target.type
        if pair == ("cpu", "cuda") and source.dim():
            assert not self.device.is_capturing, "a copy from the host while a graph is captured"
            self.device.uploads += 1
            if not (is_async and getattr(source, "was_pinned", False)):
                self.device.waited("a copy from the host")
        elif pair == ("cuda", "cpu"):
            assert not self.device.is_capturing, "a copy to the host while a graph is captured"
            if not (is_async and getattr(args[0], "was_pinned", False)):
                self.device.waited("a copy to the host")


def _tensors(tree):
    if isinstance(tree, torch.Tensor):
        yield tree
    elif isinstance(tree, dict):
        for value in tree.values():
            yield from _tensors(value)
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from _tensors(value)


def _pinned(tensor):
    tensor.was_pinned = True
    return tensor


class Event:
    """A CUDA event; a step takes a millisecond."""

    device: FakeDevice

    def __init__(self, enable_timing=False):
        self.times = enable_timing

    def record(self, stream=None):
        assert not self.device.is_capturing
        self.device.order.append("timing event" if self.times else "event")

    def synchronize(self):
        self.device.waited("an event")

    def elapsed_time(self, other):
        assert self.times and other.times
        return 1.0


class Stream:
    """A CUDA stream."""

    def wait_stream(self, other):
        pass


class Graph:
    """A CUDA graph: what it launches was counted when it was captured."""

    device: FakeDevice

    def __init__(self, keep_graph=False):
        self.launches = None

    def replay(self):
        assert self.launches, "a graph that captured nothing"
        self.device.order.append("replay")


def _pretend_cuda(monkeypatch, device: FakeDevice) -> None:
    @contextmanager
    def graph(captured, pool=None, stream=None, capture_error_mode="global"):
        device.is_capturing, collects = True, gc.isenabled()
        try:
            with device.counted() as found:
                yield
        finally:
            device.is_capturing = False
        time.sleep(device.capture_s)
        device.order.append("capture")
        captured.launches = found
        device.captures.append(Capture(found, capture_error_mode, collects))

    def empty_cache():
        device.emptied += 1

    event, cuda_graph = (type(c.__name__, (c,), {"device": device}) for c in (Event, Graph))
    properties = types.SimpleNamespace(multi_processor_count=PROCESSORS, major=9, minor=0)
    for name, value in {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "get_device_capability": lambda device=None: (9, 0),
        "get_device_properties": lambda device=None: properties,
        "mem_get_info": lambda device=None: (70 * GIB, 80 * GIB),
        "memory_reserved": lambda device=None: 0,
        "memory_allocated": lambda device=None: 0,
        "empty_cache": empty_cache,
        "device": lambda device: nullcontext(),
        "stream": lambda stream: nullcontext(),
        "Stream": Stream,
        "current_stream": lambda device=None: Stream(),
        "Event": event,
        "CUDAGraph": cuda_graph,
        "graph": graph,
        "graph_pool_handle": lambda: (0, 1),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    # One launch for all tensors, as of real ones.
    monkeypatch.setattr(_foreach_utils, "_foreach_supported_types", [torch.Tensor, FakeTensor])


def _run_kernels(monkeypatch, device: FakeDevice) -> None:
    """Lets operators run their own body for CUDA, and counts its kernels, Triton's too."""
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    shared = {"max_shared_mem": 227 << 10}
    utils = types.SimpleNamespace(get_device_properties=lambda device: shared)
    driver.set_active(types.SimpleNamespace(utils=utils))

    def run(kernel, *args, grid, warmup, **options):
        for value in args:
            assert not isinstance(value, torch.Tensor) or value.device.type == "cuda", (
                kernel.__name__
            )
        device.launched(kernel.__name__)

    monkeypatch.setattr(JITFunction, "run", run)
    modules = [m for name, m in sys.modules.items() if name.startswith(rlvr_kernels.__name__)]
    numbers: dict[int, list] = {}  # a fake tensor holds none

    def packed(given):
        numbers[len(given)] = given
        return scalars.packed(given)

    for module in modules:
        if module is not scalars and hasattr(module, "unpacked"):
            monkeypatch.setattr(module, "packed", packed)
            monkeypatch.setattr(module, "unpacked", lambda fake: numbers[len(fake)])
    try:
        from torch.nn.attention import varlen

        modules.append(varlen)
    except ImportError:
        pass
    for operator in {op for m in modules for op in vars(m).values() if isinstance(op, CustomOpDef)}:
        body = operator._init_fn

        def counted(*args, body=body, **options):
            with Watch(device):
                return body(*args, **options)

        monkeypatch.setattr(operator, "_abstract_fn", counted)
