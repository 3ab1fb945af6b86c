"""Page copies in place: the pages asked for, no other byte, and what is not there."""

import pytest
import torch
from layers import DTYPES
from rlvr_kernels import copy_pages, reference
from rlvr_kernels.pages import copy_pages_op


def pages(place, *numbers):
    return torch.tensor(numbers, dtype=torch.int64, device=place.device)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("page_size", [1, 96, 777, 9000])
def test_the_pages_and_nothing_else(place, page_size, dtype):
    place.skip_interpreted(
        dtype != torch.float32 and page_size != 96, "every size in fp32, every dtype at one size"
    )
    memory = torch.randn(3, 9, page_size, device=place.device).to(dtype)
    wanted = memory.clone()
    # One page may be copied to two.
    source, target = pages(place, 0, 7, 7, 2), pages(place, 5, 1, 8, 3)
    reference.copy_pages(wanted, source, target)
    copy_pages(memory, source, target, backend=place.backend)
    assert torch.equal(memory, wanted)


def test_bits_are_copied_not_numbers(place):
    """NaN payloads, infinities and negative zeros among them."""
    bits = torch.randint(-(2**15), 2**15, (2, 6, 128), dtype=torch.int16, device=place.device)
    wanted = bits.clone()
    wanted[:, 4] = wanted[:, 1]
    memory = bits.view(torch.bfloat16)
    copy_pages(memory, pages(place, 1), pages(place, 4), backend=place.backend)
    assert torch.equal(bits, wanted)


def test_memory_that_lies_apart(place):
    """Tensors and pages of a larger memory, in another order, and pages that are strided."""
    whole = torch.randn(6, 4, 3, 40, device=place.device)
    memory = whole[:, 1:3, 1, :32].transpose(0, 1)
    wanted = whole.clone()
    wanted[2, 1:3, 1, :32] = wanted[5, 1:3, 1, :32]
    many = pages(place, 5, 9, 2, 9)
    copy_pages(memory, many[:1], many[2:3], backend=place.backend)
    assert torch.equal(whole, wanted)
    every_other = many[::2]
    assert every_other.stride(0) == 2
    copy_pages(memory, every_other, pages(place, 0, 1), backend=place.backend)
    wanted[0, 1:3, 1, :32], wanted[1, 1:3, 1, :32] = wanted[5, 1:3, 1, :32], wanted[2, 1:3, 1, :32]
    assert torch.equal(whole, wanted)


def test_no_copies_and_no_memory(place):
    none = pages(place)
    for shape in ((2, 3, 4), (0, 3, 4), (2, 0, 4), (2, 3, 0)):
        memory = torch.zeros(shape, device=place.device)
        assert copy_pages(memory, none, none, backend=place.backend) is None


@pytest.mark.parametrize("page", [-1, 3, 2**40])
@pytest.mark.parametrize("is_read", [False, True])
def test_a_page_that_is_not_there(place, page, is_read):
    """An error where the host knows, nothing elsewhere; never another's memory."""
    memory = torch.randn(1, 3, 8, device=place.device)
    before = memory.clone()
    there, wrong = pages(place, 1), pages(place, page)
    source, target = (wrong, there) if is_read else (there, wrong)
    if place.backend == "torch":
        with pytest.raises((IndexError, RuntimeError), match="out of .*(range|bounds)"):
            copy_pages(memory, source, target, backend="torch")
    else:
        copy_pages(memory, source, target, backend=place.backend)
    assert torch.equal(memory, before)


def test_opcheck(place):
    memory = torch.randn(2, 4, 8, device=place.device)
    torch.library.opcheck(copy_pages_op, (memory, pages(place, 0), pages(place, 2), place.backend))


ONE = torch.zeros(1, dtype=torch.int64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(memory=torch.zeros(1, 3, 4).double()), "memory: expected dtype float32, .* float64"),
        (dict(memory=torch.zeros(3, 4)), r"memory: expected shape \[N, P, E\]; got \[3, 4\]"),
        (dict(memory=torch.zeros(1, 4, 3).mT), "memory: expected contiguous pages, .* got 3"),
        (dict(source=ONE.int()), "source: expected dtype int64; got int32"),
        (dict(source=ONE[None]), r"source: expected shape \[C\]; got \[1, 1\]"),
        (dict(target=torch.zeros(2, dtype=torch.int64)), r"target: expected shape \[1\] .* \[2\]"),
        (dict(target=ONE.to("meta")), "target: expected on cpu, where memory is; got meta"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    arguments = dict(memory=torch.zeros(1, 3, 4), source=ONE, target=ONE + 1)
    with pytest.raises((TypeError, ValueError), match=message):
        copy_pages(**(arguments | change))
