"""Inversion of many numbers in lockstep: Euclid's algorithm in floating point, in SIMD registers.

Compiled loops of `azr.modular`, which checks every argument before it calls them. Lane-wise loops
in plain Numba compute the same thing at a third of the speed (LLVM spills every lane's state to
memory at each step and halves the vector width), so the two inner loops are written in LLVM IR.
Nothing in them is specific to a processor.

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
are only brought down to it. `shrink` runs float64 steps until |a| < 2**22; float32 then finds c
with c*b = 1 (mod a) and |c| <= |a| (3); d = (1 - c*b)/a is an integer with |d| <= |b|, its
division exact; and 1/x = c*t + d*s, at most 3p < 2**52 in magnitude by (3). Above 2**50, integer
steps bring |a| below 2**50 in the same way; there c is reduced to |c| <= |a|/2, so |d| <= |b|/2 <
2**49, the rounded quotient is off by less than 4 * 2**-53 * 2**49 = 1/4 and its nearest integer
is d, and |c*t + d*s| < 2p < 2**63: no overflow.

Factors that are not needed any more are computed nonetheless; a lane without an inverse ends with
g other than +-1 and yields 0.
"""

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import overload

from azr.modular.jit import instruction, jit

SMALL_LIMIT = 2**22
"""`invert_small` is proved for p below this."""

MEDIUM_LIMIT = 2**50
"""`invert_medium` is proved for p below this, and `invert_large` hands down to it from 2**62."""

VECTORS_F32, VECTORS_F64 = 6, 5
"""Vectors in flight in the inner loops: enough to hide the latency of a division."""

LANES_F32, LANES_F64 = 8 * VECTORS_F32, 4 * VECTORS_F64

BLOCK = 480
"""Rows that pass through all floors together: a multiple of the lanes; all state fits the L1."""


# --- the two loops in LLVM IR -------------------------------------------------------------------


def _euclid_loop(builder, element, a_and_b, is_unfinished):
    """Emit two steps at a time until no lane is unfinished; the lists [a, b, s, t] of vectors.

    `a_and_b` holds two lists of vectors of the LLVM vector type `element`.
    """
    vectors = len(a_and_b[0])
    zero = ir.Constant(element, None)
    one = ir.Constant(element, [1.0] * element.count)
    bits = {ir.FloatType(): 32, ir.DoubleType(): 64}[element.element]
    rint = cgutils.get_or_insert_function(
        builder.module,
        ir.FunctionType(element, [element]),
        f"llvm.rint.v{element.count}f{bits}",
    )
    # Fused where the processor can; the result is the same integer either way (4 above).
    fused = {"flags": ("contract",)}

    def step(big, small, big_factor, small_factor):
        quotient = builder.call(rint, [builder.fdiv(big, small)])
        quotient = builder.select(builder.fcmp_ordered("!=", small, zero), quotient, zero)
        return (
            builder.fsub(big, builder.fmul(quotient, small, **fused), **fused),
            builder.fsub(big_factor, builder.fmul(quotient, small_factor, **fused), **fused),
        )

    start = [*a_and_b, [zero] * vectors, [one] * vectors]
    before = builder.block
    loop = builder.append_basic_block("euclid")
    after = builder.append_basic_block("euclid_done")
    builder.branch(loop)

    builder.position_at_end(loop)
    phis = [[builder.phi(element) for _ in range(vectors)] for _ in start]
    state = [list(row) for row in phis]
    unfinished = None
    for k in range(vectors):
        a, b, s, t = (row[k] for row in phis)
        a, s = step(a, b, s, t)
        b, t = step(b, a, t, s)
        for row, value in zip(state, (a, b, s, t), strict=True):
            row[k] = value
        lanes = is_unfinished(a, b)
        unfinished = lanes if unfinished is None else builder.or_(unfinished, lanes)
    for row, first_values, values in zip(phis, start, state, strict=True):
        for phi, first_value, value in zip(row, first_values, values, strict=True):
            phi.add_incoming(first_value, before)
            phi.add_incoming(value, builder.block)
    mask = builder.bitcast(unfinished, ir.IntType(element.count))
    builder.cbranch(builder.icmp_unsigned("!=", mask, ir.Constant(mask.type, 0)), loop, after)

    builder.position_at_end(after)
    return state


def _vector_pointers(context, builder, array_types, args, element, vectors):
    """Per array, pointers to consecutive vectors from row `first`, the last argument."""
    rows = []
    for array_type, array in zip(array_types, args[:-1], strict=True):
        data = context.make_array(array_type)(context, builder, array).data
        offsets = [ir.Constant(ir.IntType(64), k * element.count) for k in range(vectors)]
        starts = [builder.gep(data, [builder.add(args[-1], offset)]) for offset in offsets]
        rows.append([builder.bitcast(start, element.as_pointer()) for start in starts])
    return rows


_FLOATS = types.Array(types.float32, 1, "C")
_DOUBLES = types.Array(types.float64, 1, "C")


@instruction
def _finish(typing_context, a, b, first):
    """See `finish`."""

    def codegen(context, builder, signature, args):
        element = ir.VectorType(ir.FloatType(), 8)
        zero = ir.Constant(element, None)
        pointers = _vector_pointers(
            context, builder, signature.args[:-1], args, element, VECTORS_F32
        )
        start = [[builder.load(pointer, align=4) for pointer in row] for row in pointers]

        def is_unfinished(a, b):
            return builder.fcmp_ordered("!=", builder.fmul(a, b), zero)

        state = _euclid_loop(builder, element, start, is_unfinished)
        for k, (a, b, s, t) in enumerate(zip(*state, strict=True)):
            g = builder.fadd(a, b)
            factor = builder.select(builder.fcmp_ordered("!=", a, zero), s, t)
            builder.store(g, pointers[0][k], align=4)
            builder.store(builder.fmul(g, factor), pointers[1][k], align=4)
        return context.get_dummy_value()

    return types.none(_FLOATS, _FLOATS, types.int64), codegen


@instruction
def _shrink(typing_context, a, b, s, t, first):
    """See `shrink`."""

    def codegen(context, builder, signature, args):
        element = ir.VectorType(ir.DoubleType(), 4)
        zero = ir.Constant(element, None)
        limit = ir.Constant(element, [float(SMALL_LIMIT)] * 4)
        fabs = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(element, [element]), "llvm.fabs.v4f64"
        )
        pointers = _vector_pointers(
            context, builder, signature.args[:-1], args, element, VECTORS_F64
        )
        start = [[builder.load(pointer, align=8) for pointer in row] for row in pointers[:2]]

        def is_unfinished(a, b):
            # b = 0 ends a lane whose common factor is large; it would never get below the limit.
            is_large = builder.fcmp_ordered(">=", builder.call(fabs, [a]), limit)
            return builder.and_(is_large, builder.fcmp_ordered("!=", b, zero))

        state = _euclid_loop(builder, element, start, is_unfinished)
        for pointer_row, row in zip(pointers, state, strict=True):
            for pointer, value in zip(pointer_row, row, strict=True):
                builder.store(value, pointer, align=8)
        return context.get_dummy_value()

    return types.none(_DOUBLES, _DOUBLES, _DOUBLES, _DOUBLES, types.int64), codegen


# --- their twins in NumPy, which plain Python runs and the tests compare with ---------------------


def _two_steps(a, b, s, t):
    """Two steps of every lane, in place."""
    for big, small, big_factor, small_factor in ((a, b, s, t), (b, a, t, s)):
        q = np.rint(np.divide(big, small, out=np.zeros_like(big), where=small != 0))
        big -= q * small
        big_factor -= q * small_factor


def finish(a, b, first):
    """Run LANES_F32 float32 lanes from row `first` to the end: a becomes g, b its factor times g.

    |b| <= |a| < SMALL_LIMIT, or b = 0. Where |g| = 1, b is then the inverse of b modulo a.
    """
    rows = slice(first, first + LANES_F32)
    a, b = a[rows], b[rows]
    s, t = np.zeros_like(a), np.ones_like(a)
    while True:
        _two_steps(a, b, s, t)
        if not (a * b).any():
            break
    factor = np.where(a != 0, s, t)
    a += b
    b[:] = a * factor


def shrink(a, b, s, t, first):
    """Step LANES_F64 float64 lanes from row `first` until each |a| < SMALL_LIMIT or b = 0.

    s and t are written, not read. |b| <= |a| < MEDIUM_LIMIT, or b = 0.
    """
    rows = slice(first, first + LANES_F64)
    a, b, s, t = a[rows], b[rows], s[rows], t[rows]
    s[:] = 0
    t[:] = 1
    while True:
        _two_steps(a, b, s, t)
        if not ((np.abs(a) >= SMALL_LIMIT) & (b != 0)).any():
            break


@overload(finish, inline="always")
def _finish_compiled(a, b, first):
    return lambda a, b, first: _finish(a, b, first)


@overload(shrink, inline="always")
def _shrink_compiled(a, b, s, t, first):
    return lambda a, b, s, t, first: _shrink(a, b, s, t, first)


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
    a, b = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
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
            finish(a, b, lane)
        for i in range(size):
            y = b[i]
            y += np.float32(p_block[i]) if y < zero else zero
            out_block[i] = np.int32(y if abs(a[i]) == one else zero)


@jit
def _invert_doubles(a, b, s, t, y, g32, c32):
    """y = an inverse of b mod a with |y| <= |a|/2 for |b| <= |a| < MEDIUM_LIMIT, BLOCK rows.

    It exists where |g32| is 1. a is kept; b, s, t, g32 and c32 are working space.
    """
    y[:] = a
    for lane in range(0, BLOCK, LANES_F64):
        shrink(y, b, s, t, lane)
    for i in range(BLOCK):
        g32[i] = y[i]
        c32[i] = b[i]
    for lane in range(0, BLOCK, LANES_F32):
        finish(g32, c32, lane)
    for i in range(BLOCK):
        c = np.float64(c32[i])
        d = (1.0 - c * b[i]) / y[i] if y[i] != 0.0 else 0.0
        inverse = c * t[i] + d * s[i]
        y[i] = inverse - np.rint(inverse / a[i]) * a[i]


@jit
def invert_medium(x, p, out):
    """p < MEDIUM_LIMIT; int32 or int64 arrays of one length."""
    a, b, s = np.empty(BLOCK), np.empty(BLOCK), np.empty(BLOCK)
    t, y = np.empty(BLOCK), np.empty(BLOCK)
    g32, c32 = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
    a_bits, b_bits, y_bits = a.view(np.int64), b.view(np.int64), y.view(np.int64)
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
        _invert_doubles(a, b, s, t, y, g32, c32)
        for i in range(BLOCK):
            inverse = y[i] + a[i] if y[i] < 0.0 else y[i]
            y[i] = _TWO_52 + (inverse if abs(g32[i]) == np.float32(1) else 0.0)
        for i in range(size):
            out_block[i] = y_bits[i] & _LOW_52_BITS


@jit
def invert_large(x, p, out):
    """p < 2**62; int64 arrays of one length."""
    big, small = np.empty(BLOCK, np.int64), np.empty(BLOCK, np.int64)
    big_factor, small_factor = np.empty(BLOCK, np.int64), np.empty(BLOCK, np.int64)
    a, b, s = np.empty(BLOCK), np.empty(BLOCK), np.empty(BLOCK)
    t, y = np.empty(BLOCK), np.empty(BLOCK)
    g32, c32 = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
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
            # A common factor of 2**50 or more ended the lane: it has no inverse.
            is_small = abs(big[i]) < MEDIUM_LIMIT
            a[i] = big[i] if is_small else 0
            b[i] = small[i] if is_small else 0
        a[size:] = 1.0
        b[size:] = 0.0
        _invert_doubles(a, b, s, t, y, g32, c32)
        for i in range(size):
            if abs(g32[i]) == np.float32(1):
                d = np.rint((1.0 - y[i] * np.float64(small[i])) / a[i])
                inverse = np.int64(y[i]) * small_factor[i] + np.int64(d) * big_factor[i]
                inverse += p_block[i] if inverse < 0 else 0
                inverse += p_block[i] if inverse < 0 else 0
                inverse -= p_block[i] if inverse >= p_block[i] else 0
                out_block[i] = inverse
            else:
                out_block[i] = 0
