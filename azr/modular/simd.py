"""Inversion of many numbers in lockstep: Euclid's algorithm in floating point, in SIMD registers.

Compiled loops of `azr.modular`, which checks every argument before it calls them. Lane-wise loops
in plain Numba compute the same thing at a third of the speed (LLVM spills every lane's state to
memory at each step and halves the vector width), so the inner loop is written in LLVM IR. Nothing
in it is specific to a processor.

**The step.** A lane holds integers a, b, s, t as floats with a = s*x and b = t*x (mod p); it
starts at a, b, s, t = p, x, 0, 1. A step is q = rint(a / b), a -= q*b, s -= q*t, and then the
roles of (a, s) and (b, t) change. A lane whose divisor is 0 takes q = 0 and stands still. At the
end one of a, b is 0 and the other is g = +-gcd(x, p); if g = +-1, then g times its factor is 1/x.

**Why rounding does no harm.** Let u = 2**-24 in float32 and 2**-53 in float64.

1. *Any* integer q keeps a = s*x and b = t*x, provided that products and differences are exact.
2. For |a| < 1/(4u), which is 2**22 and 2**51, q is a nearest integer to a/b: the quotient is off
   by at most u*|a/b|, so |a - q*b| <= |b|/2 + u*|a| < |b|/2 + 1/4, and as 2*(a - q*b) is an even
   integer, |a - q*b| <= |b|/2. So the remainders at least halve and the loop ends.
3. a*t - b*s = +-p at every step, and |q| >= 2 from the second step on, so the factors grow, and
   from |b| <= |a|/2 and |s| <= |t| it follows that |t| <= 2p/|a|. While b is not 0, |a| >= 2, so
   |t| <= p; the factor that belongs to b = 0 is +-p/g. All are at most p in magnitude, and q*t is
   at most 2p.
4. So for p < 2**22 in float32 and p < 2**50 in float64 every product and difference is an integer
   below 2**24 or 2**53: exact, with or without a fused multiply-add.

**Two and three floors.** float32 has twice the lanes and the cheaper division, so larger moduli
are only brought down to it. float64 steps run until |a| < 2**22; float32 then finds c with c*b = 1
(mod a) and |c| < |a| (by (3), and as c shares no factor with a); d = (1 - c*b)/a is an integer
with |d| <= |b|, its division exact. Then 1/x = y = c*t + d*s = (s +- c*p)/a, so |y| <= p, and no
term exceeds 2p. Above 2**50, integer steps bring |a| below 2**50 in the same way. Their quotients
are rounded to 53 bits, so |b| may exceed |a|/2, but by less than 2**11; then |c*b/a| < |b| < 2**49
+ 2**11, the rounded quotient is off by less than 4 * 2**-53 * (2**49 + 2**11) and its nearest
integer is d. Where a = +-1, c is 0. And 2p < 2**63: no overflow.

Factors that are not needed any more are computed nonetheless; a lane without an inverse ends with
g other than +-1 and yields 0.
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import lower_builtin, type_callable

from azr.modular.jit import jit

SMALL_LIMIT = 2**22
"""`invert_small` is proved for p below this."""

MEDIUM_LIMIT = 2**50
"""`invert_medium` is proved for p below this, and `invert_large` hands down to it from 2**62."""

VECTORS_F32, VECTORS_F64 = 6, 5
"""Vectors in flight in the inner loop: enough to hide the latency of a division."""

LANES_F32, LANES_F64 = 8 * VECTORS_F32, 4 * VECTORS_F64

BLOCK = 240
"""Rows that pass through all floors together: a multiple of the lanes; all state fits the L1."""


# --- the inner loop -----------------------------------------------------------------------------


def euclid(state, first):
    """Step LANES_F32 or LANES_F64 lanes from `first` on; state [4, BLOCK] has the rows a, b, s, t.

    Lanes of float64 step until |a| < SMALL_LIMIT or b = 0, lanes of float32 until a or b is 0.
    |b| <= |a| < MEDIUM_LIMIT or SMALL_LIMIT, or b = 0; s and t are written, not read. Compiled
    code runs the loop below; this body is its twin, for plain Python and for the tests.
    """
    is_narrow = state.dtype == np.float32
    a, b, s, t = state[:, first : first + (LANES_F32 if is_narrow else LANES_F64)]
    s[:], t[:] = 0, 1
    is_unfinished = np.True_
    while is_unfinished.any():
        for big, small, big_factor, small_factor in ((a, b, s, t), (b, a, t, s)):
            q = np.rint(np.divide(big, small, out=np.zeros_like(big), where=small != 0))
            big -= q * small
            big_factor -= q * small_factor
        is_unfinished = (np.abs(a) >= (1 if is_narrow else SMALL_LIMIT)) & (b != 0)


@type_callable(euclid)
def _type_euclid(context):
    return lambda state, first: types.none


@lower_builtin(euclid, types.Array, types.int64)
def _emit_euclid(context, builder, signature, args):
    """Emit `euclid`, two steps at a time, so that a and b need not change places."""
    array_type = signature.args[0]
    lanes, vectors, limit = 4, VECTORS_F64, SMALL_LIMIT
    if array_type.dtype == types.float32:
        lanes, vectors, limit = 8, VECTORS_F32, 1
    element = ir.VectorType(context.get_data_type(array_type.dtype), lanes)
    zero, one, limit = (ir.Constant(element, [float(n)] * lanes) for n in (0, 1, limit))
    # Fused where the processor can; the result is the same integer either way (4 above).
    fused = {"flags": ("contract",)}

    def call(name, value):
        name = f"llvm.{name}.v{lanes}f{array_type.dtype.bitwidth}"
        function_type = ir.FunctionType(element, [element])
        return builder.call(
            cgutils.get_or_insert_function(builder.module, function_type, name), [value]
        )

    def step(big, small, big_factor, small_factor):
        quotient = call("rint", builder.fdiv(big, small))
        quotient = builder.select(builder.fcmp_ordered("!=", small, zero), quotient, zero)
        return (
            builder.fsub(big, builder.fmul(quotient, small, **fused), **fused),
            builder.fsub(big_factor, builder.fmul(quotient, small_factor, **fused), **fused),
        )

    data = context.make_array(array_type)(context, builder, args[0]).data
    pointers, start = [], []
    for vector in range(vectors):
        offsets = [row * BLOCK + vector * lanes for row in range(4)]
        places = [builder.add(args[1], ir.Constant(ir.IntType(64), offset)) for offset in offsets]
        lane = [builder.bitcast(builder.gep(data, [i]), element.as_pointer()) for i in places]
        a, b = (builder.load(pointer, align=4) for pointer in lane[:2])
        pointers.append(lane)
        start.append((a, b, zero, one))

    before = builder.block
    loop = builder.append_basic_block("euclid")
    after = builder.append_basic_block("euclid_done")
    builder.branch(loop)

    builder.position_at_end(loop)
    phis = [[builder.phi(element) for _ in first_values] for first_values in start]
    end = []
    unfinished = ir.Constant(ir.VectorType(ir.IntType(1), lanes), None)
    for a, b, s, t in phis:
        a, s = step(a, b, s, t)
        b, t = step(b, a, t, s)
        end.append((a, b, s, t))
        # b = 0 ends a lane whose common factor is large; it would never get below the limit.
        is_large = builder.fcmp_ordered(">=", call("fabs", a), limit)
        is_unfinished = builder.and_(is_large, builder.fcmp_ordered("!=", b, zero))
        unfinished = builder.or_(unfinished, is_unfinished)
    mask = builder.bitcast(unfinished, ir.IntType(lanes))
    builder.cbranch(builder.icmp_unsigned("!=", mask, ir.Constant(mask.type, 0)), loop, after)

    builder.position_at_end(after)
    for rows in zip(pointers, phis, start, end, strict=True):
        for pointer, phi, first_value, value in zip(*rows, strict=True):
            phi.add_incoming(first_value, before)
            phi.add_incoming(value, loop)
            builder.store(value, pointer, align=4)
    return context.get_dummy_value()


# --- inversion by size of modulus ---------------------------------------------------------------
#
# Each writes out = 1/x mod p, or 0 where there is none, for 0 <= x < p, 2 <= p < its limit.

# A float64 in [2**52, 2**53) holds an integer in its low 52 bits: conversion both ways without
# the instruction for it, which not every processor has for vectors.
_EXPONENT_52 = np.int64(0x433 << 52)
_LOW_52_BITS = np.int64(2**52 - 1)
_TWO_52 = np.float64(2**52)


@jit
def invert_small(x, p, out):
    """p < SMALL_LIMIT; int32 arrays of one length."""
    state = np.empty((4, BLOCK), np.float32)
    a, b, s, t = state[0], state[1], state[2], state[3]
    zero, one = np.float32(0), np.float32(1)
    for first in range(0, x.size, BLOCK):
        rows = slice(first, first + BLOCK)
        x_block, p_block, out_block = x[rows], p[rows], out[rows]
        size = x_block.size
        if size < BLOCK:
            a[:] = one
            b[:] = zero
        for i in range(size):
            a[i] = p_block[i]
            b[i] = x_block[i]
        for lane in range(0, BLOCK, LANES_F32):
            euclid(state, lane)
        for i in range(size):
            # One of a and b is 0.
            g, y = a[i] + b[i], a[i] * s[i] + b[i] * t[i]
            y += np.float32(p_block[i]) if y < zero else zero
            out_block[i] = np.int32(y if abs(g) == one else zero)


@jit
def invert_medium(x, p, out):
    """p < MEDIUM_LIMIT and x, which may exceed p; int32 or int64 arrays of one length."""
    modulus, state, narrow = np.empty(BLOCK), np.empty((4, BLOCK)), np.empty((4, BLOCK), np.float32)
    a, b, s, t = state[0], state[1], state[2], state[3]
    a_bits, b_bits = a.view(np.int64), b.view(np.int64)
    for first in range(0, x.size, BLOCK):
        rows = slice(first, first + BLOCK)
        x_block, p_block, out_block = x[rows], p[rows], out[rows]
        size = x_block.size
        if size < BLOCK:
            a_bits[:] = _EXPONENT_52 | 1
            b_bits[:] = _EXPONENT_52
        for i in range(size):
            a_bits[i] = p_block[i] | _EXPONENT_52
            b_bits[i] = x_block[i] | _EXPONENT_52
        for i in range(BLOCK):
            a[i] -= _TWO_52
            b[i] -= _TWO_52
            modulus[i] = a[i]
        for lane in range(0, BLOCK, LANES_F64):
            euclid(state, lane)
        for i in range(BLOCK):
            narrow[0, i] = a[i]
            narrow[1, i] = b[i]
        for lane in range(0, BLOCK, LANES_F32):
            euclid(narrow, lane)
        for i in range(BLOCK):
            g = narrow[0, i] + narrow[1, i]
            c = np.float64(narrow[0, i] * narrow[2, i] + narrow[1, i] * narrow[3, i])
            d = (1.0 - c * b[i]) / a[i] if a[i] != 0.0 else 0.0
            y = c * t[i] + d * s[i]
            y += modulus[i] if y < 0.0 else 0.0
            a[i] = _TWO_52 + (y if abs(g) == np.float32(1) else 0.0)
        for i in range(size):
            out_block[i] = a_bits[i] & _LOW_52_BITS


@jit
def invert_large(x, p, out):
    """p < 2**62; int64 arrays of one length."""
    # As a, b, s, t above, of integers.
    big, small = np.empty(BLOCK, np.int64), np.empty(BLOCK, np.int64)
    big_factor, small_factor = np.empty(BLOCK, np.int64), np.empty(BLOCK, np.int64)
    modulus, residue = np.empty(BLOCK, np.int64), np.empty(BLOCK, np.int64)
    todo = np.empty(BLOCK, np.uint64)
    for first in range(0, x.size, BLOCK):
        rows = slice(first, first + BLOCK)
        x_block, p_block, out_block = x[rows], p[rows], out[rows]
        size = x_block.size
        left = 0
        for i in range(size):
            big[i], small[i] = p_block[i], x_block[i]
            big_factor[i], small_factor[i] = 0, 1
            todo[left] = i
            left += (p_block[i] >= MEDIUM_LIMIT) & (x_block[i] != 0)
        while left:
            still_left = 0
            for k in range(left):
                i = todo[k]
                u, v, s_u, s_v = big[i], small[i], big_factor[i], small_factor[i]
                q = np.int64(np.rint(np.float64(u) / np.float64(v)))
                remainder = u - q * v
                big[i] = v
                small[i] = remainder
                big_factor[i] = s_v
                small_factor[i] = s_u - q * s_v
                todo[still_left] = i
                still_left += (abs(v) >= MEDIUM_LIMIT) & (remainder != 0)
            left = still_left
        for i in range(size):
            # A common factor of 2**50 or more ended the lane: it has no inverse, like 0 modulo 2.
            a = abs(big[i])
            modulus[i] = a if a < MEDIUM_LIMIT else 2
            residue[i] = abs(small[i]) if a != 1 else 0
        invert_medium(residue[:size], modulus[:size], out_block)
        for i in range(size):
            c = -out_block[i] if small[i] < 0 else out_block[i]
            d = np.rint((1.0 - np.float64(c) * np.float64(small[i])) / np.float64(big[i]))
            y = c * small_factor[i] + np.int64(d) * big_factor[i]
            y += p_block[i] if y < 0 else 0
            out_block[i] = y if c != 0 or modulus[i] == 1 else 0
