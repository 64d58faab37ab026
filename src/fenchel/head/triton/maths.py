"""exp, log and sqrt in float32 and float64, accurate everywhere and made of arithmetic: a GPU and the interpreter agree.

Triton's own float32 exp and log are the hardware's approximations, whose error is not relative to the result. In float64 they are the accurate ones.
"""

import triton.language as tl

from .launch import jit

__all__ = ["exp", "log", "sqrt"]


@jit
def exp(x):
    """e^x, to about one unit in the last place: 2^n e^r with |r| <= log(2)/2."""
    if x.dtype == tl.float64:
        result = tl.exp(x)
    else:
        n = tl.floor(x * 1.4426950408889634 + 0.5)
        # NaN, and what the last line replaces, get an exponent that an integer can hold
        n = tl.where((n >= -150.0) & (n <= 128.0), n, 0.0)
        # log 2 in two parts: the product with the first is exact
        r = (x - n * 0.693359375) + n * 2.1219444005469058e-4
        series = 1.0 / 5040.0
        series = r * series + 1.0 / 720.0
        series = r * series + 1.0 / 120.0
        series = r * series + 1.0 / 24.0
        series = r * series + 1.0 / 6.0
        series = r * series + 0.5
        series = r * series + 1.0
        series = r * series + 1.0
        # two factors, so that neither leaves the exponents of float32
        whole = n.to(tl.int32)
        half = whole >> 1
        series = series * ((half + 127) << 23).to(tl.float32, bitcast=True)
        series = series * ((whole - half + 127) << 23).to(tl.float32, bitcast=True)
        result = tl.where(x < -104.0, 0.0, tl.where(x > 88.73, float("inf"), series))
    return result


@jit
def log(x):
    """log x, to a few units in the last place, near x = 1 too: e log 2 + 2 artanh((m - 1)/(m + 1)), m within [sqrt(1/2), sqrt(2))."""
    if x.dtype == tl.float64:
        result = tl.log(x)
    else:
        denormal = x < 1.1754943508222875e-38
        bits = tl.where(denormal, x * 8388608.0, x).to(tl.int32, bitcast=True)
        exponent = (bits - 0x3F3504F3) >> 23
        m = (bits - (exponent << 23)).to(tl.float32, bitcast=True)
        e = exponent.to(tl.float32) - tl.where(denormal, 23.0, 0.0)
        s = (m - 1.0) / (m + 1.0)
        w = s * s
        series = 1.0 / 9.0
        series = w * series + 1.0 / 7.0
        series = w * series + 1.0 / 5.0
        series = w * series + 1.0 / 3.0
        series = 2.0 * s + 2.0 * s * w * series
        finite = e * 0.693359375 + (series - e * 2.1219444005469058e-4)
        result = tl.where(x > 0.0, finite, tl.where(x == 0.0, float("-inf"), float("nan")))
        result = tl.where(x == float("inf"), x, result)
    return result


@jit
def sqrt(x):
    """The square root, rounded to nearest."""
    if x.dtype == tl.float64:
        result = tl.sqrt(x)
    else:
        result = tl.sqrt_rn(x)
    return result
