"""Triton functions shared by the row kernel and the fused linear kernel.

Both keep, per row and online, three sums over all columns but the target's:

    top   largest t so far, t = logit * log2(e) / temperature: powers of two cost one instruction
    rest  sum of 2^(t - top)
    tilt  sum of 2^(t - top) * (t - top), for the entropy; centred on `top`, it never cancels

The target stays outside so that a confident token keeps its digits: log p = -log1p(rest / e_y)
and 1 - p = rest / sum hold to full relative precision where 1 - p is 1e-6, the very rows whose
gradient a subtraction from 1 would lose.
"""

import triton
import triton.language as tl

# Below any logit that occurs, finite so that top - top is 0 and never -inf + inf.
NO_TOP = tl.constexpr(-1.0e30)
# 2^-200 is 0 in float32; stands for t - top of a column that must not count.
NOTHING = tl.constexpr(-200.0)
LN2 = tl.constexpr(0.6931471805599453)
LOG2E = tl.constexpr(1.4426950408889634)
NEG_INF = tl.constexpr(float("-inf"))


@triton.jit
def add_block(t, top, rest, tilt, WITH_ENTROPY: tl.constexpr):
    """Fold t [R, C] into the running sums [R]; -inf columns count nothing, NaN ones poison."""
    new_top = tl.maximum(top, tl.max(t, 1))
    gap = tl.where(t == NEG_INF, NOTHING, t - new_top[:, None])
    e = tl.exp2(gap)
    shrink = tl.exp2(top - new_top)
    if WITH_ENTROPY:
        tilt = (tilt + rest * (top - new_top)) * shrink + tl.sum(e * gap, 1)
    rest = rest * shrink + tl.sum(e, 1)
    return new_top, rest, tilt


@triton.jit
def merge(top, rest, tilt, other_top, other_rest, other_tilt):
    """The sums of two disjoint column sets as one."""
    new_top = tl.maximum(top, other_top)
    a, b = tl.exp2(top - new_top), tl.exp2(other_top - new_top)
    tilt = (tilt + rest * (top - new_top)) * a + (
        other_tilt + other_rest * (other_top - new_top)
    ) * b
    return new_top, rest * a + other_rest * b, tilt


@triton.jit
def log1p(x):
    """log(1 + x) for x >= 0, to full relative precision near 0."""
    series = x * (1 - x * (0.5 - x * (1.0 / 3 - x * (0.25 - x * 0.2))))
    return tl.where(x < 0.03, series, tl.log(1 + x))


@triton.jit
def one_minus_exp(x):
    """1 - exp(x) for x <= 0, to full relative precision near 0."""
    series = -x * (1 + x * (0.5 + x * (1.0 / 6 + x * (1.0 / 24 + x * (1.0 / 120)))))
    return tl.where(x > -0.1, series, 1 - tl.exp(x))


@triton.jit
def finish(top, rest, tilt, target):
    """(log-prob, entropy, log-sum-exp) in nats from the sums and the target's t, NaN if it is."""
    peak = tl.maximum(top, target)
    shrink = tl.exp2(top - peak)
    e_target = tl.exp2(target - peak)
    others = rest * shrink
    total = others + e_target
    log_total = tl.where(target >= top, log1p(others), tl.log(total))
    gap = tl.where(e_target == 0, 0.0, target - peak)
    lean = (tilt + rest * (top - peak)) * shrink + e_target * gap
    lse = peak * LN2 + log_total
    entropy = log_total - LN2 * lean / total
    return (target - peak) * LN2 - log_total, entropy, lse


@triton.jit
def dlogit(t, ref, level, slope, is_target, at_target):
    """Gradient to logit / temperature: p (level + slope log p), or `at_target` in that column.

    t and ref in base 2, p = 2^(t - ref). With upstream gradients g to the log-prob, h to the
    entropy H and l to the log-sum-exp: level = l - g - h H, slope = -h.
    """
    gap = tl.where(is_target | (t == NEG_INF), NOTHING, t - ref)
    value = tl.exp2(gap) * (level + slope * (gap * LN2))
    return tl.where(is_target, at_target, value)
