# mypy: disable-error-code="no-untyped-def, untyped-decorator"
"""What printed kernels call: functions of the device that no rule changes.

Imported by printed text alone, for it needs triton. Whole numbers wrap around on purpose; `tl.add` and
`tl.mul` say so, where `+` and `*` would be checked by the interpreter.
"""

import triton
import triton.language as tl

# ------------------------------------------------------------ numbers


@triton.jit
def bits(x):
    return x.to(tl.int32, bitcast=True)


@triton.jit
def from_bits(b):
    return b.to(tl.float32, bitcast=True)


@triton.jit
def round_bf16(x):
    """To nearest, ties to even, by adding just below half of what is cut off; NaN stays NaN."""
    b = bits(x)
    up = tl.add(tl.add(b, (b >> 16) & 1, sanitize_overflow=False), 0x7FFF, sanitize_overflow=False)
    return from_bits(tl.where(x != x, 0x7FC00000, up & -0x10000))


@triton.jit
def tanh(x):
    e = tl.exp(-2.0 * tl.abs(x).to(tl.float64))
    y = (1.0 - e) / (1.0 + e)
    near = tl.abs(x) < 1e-4  # tanh x is x there, and 1 - e nothing
    return tl.where(near, x, tl.where(x < 0.0, -y, y).to(tl.float32))


@triton.jit
def power(x, y):
    """x to the y in float64; NaN for a finite negative x and a y that is not whole."""
    x, y = tl.broadcast(x.to(tl.float64), y.to(tl.float64))
    size = tl.exp(y * tl.log(tl.abs(x)))
    whole = tl.floor(y) == y
    odd = whole & (tl.floor(y * 0.5) * 2.0 != y)
    negative = (x < 0.0) | (1.0 / x < 0.0)  # also -0
    signed = tl.where(negative & odd, -size, size)
    known = tl.where((x < 0.0) & (x > float("-inf")) & (whole == 0), float("nan"), signed)
    return tl.where((y == 0.0) | (x == 1.0), 1.0, known)


# ------------------------------------------------------------ noise: `codecs.verbs`, in unsigned words


@triton.jit
def mix(x):
    x = tl.mul(x ^ (x >> 16), 0x21F0AAAD, sanitize_overflow=False)
    x = tl.mul(x ^ (x >> 15), 0x735A2D97, sanitize_overflow=False)
    return x ^ (x >> 15)


@triton.jit
def tensor_key(seed, step, ordinal):
    """Words that set apart the noise of one tensor in one step."""
    by_step = tl.mul(step.to(tl.uint32), 0x9E3779B9, sanitize_overflow=False)
    by_place = tl.mul(ordinal.to(tl.uint32), 0x85EBCA6B, sanitize_overflow=False)
    first = mix(mix(tl.add(seed.to(tl.uint32), by_step, sanitize_overflow=False)) ^ by_place)
    return first, mix(tl.add(first, 0x9E3779B9, sanitize_overflow=False))


@triton.jit
def word(place, first, second, STRIDE: tl.constexpr, MULTIPLIER: tl.constexpr):
    """A random int32 for elements at these places (the low 32 bits)."""
    x = tl.mul(place.to(tl.uint32, bitcast=True), STRIDE, sanitize_overflow=False)
    x = tl.add(x, first, sanitize_overflow=False)
    x = tl.mul(x ^ (x >> 15) ^ second, MULTIPLIER, sanitize_overflow=False)
    return x.to(tl.int32, bitcast=True)


# ------------------------------------------------------------ sums, in a fixed order


@triton.jit
def total(partials, first, last, WIDTH: tl.constexpr, COLUMN: tl.constexpr):
    """The sum of one column over pieces first to last, float64."""
    own = tl.zeros((1024,), tl.float64)
    for start in range(first, last, 1024):
        piece = start + tl.arange(0, 1024)
        own += tl.load(partials + piece * WIDTH + COLUMN, mask=piece < last, other=0.0)
    return tl.sum(own)


@triton.jit
def add_parts(base, count, parts, start, TILE: tl.constexpr):
    """Vectors of `count` numbers, one for each of so many parts of a tensor, added up in the first."""
    at = start + tl.arange(0, TILE)
    own = tl.zeros((TILE,), tl.float32)
    for part in range(0, parts):
        own += tl.load(base + part * count + at, mask=at < count, other=0.0)
    tl.store(base + at, own, mask=at < count)


@triton.jit
def report(
    pointers, first, last, partials, control, WIDTH: tl.constexpr, COUNT: tl.constexpr, AT: tl.constexpr
):
    """The last COUNT sums of the pieces first to last of a tensor, to where they are read, from AT on."""
    if tl.load(control) == 0.0:
        return
    tensor = tl.program_id(0)
    to = tl.load(pointers + tensor).to(tl.pointer_type(tl.float64))
    own = tl.load(first + tensor), tl.load(last + tensor)
    for column in tl.static_range(COUNT):
        tl.store(to + AT + column, total(partials, own[0], own[1], WIDTH, WIDTH - COUNT + column))


# ------------------------------------------------------------ the verdict


@triton.jit
def measure(pointers, work, partials, ALIGNED: tl.constexpr, TYPE: tl.constexpr, TILE: tl.constexpr):
    """One piece of one gradient: the sum of its squares, and how many elements are not finite.

    Squares are float64: no finite gradient overflows.
    """
    piece = tl.program_id(0)
    own = work + piece.to(tl.int64) * 3
    tensor, first, last = tl.load(own), tl.load(own + 1), tl.load(own + 2)
    if TYPE == "bfloat16":
        g_at = tl.load(pointers + tensor).to(tl.pointer_type(tl.int16))
    elif TYPE == "float16":
        g_at = tl.load(pointers + tensor).to(tl.pointer_type(tl.float16))
    else:
        g_at = tl.load(pointers + tensor).to(tl.pointer_type(tl.float32))
    first = tl.multiple_of(first, TILE)
    if ALIGNED:
        g_at, last = tl.multiple_of(g_at, 16), tl.multiple_of(last, 16)
    squares = tl.zeros((TILE,), tl.float64)
    bad = tl.zeros((TILE,), tl.float64)
    for start in range(first, last, TILE):
        at = start + tl.arange(0, TILE)
        g = tl.load(g_at + at, mask=at < last, other=0)
        g = from_bits(g.to(tl.int32) << 16) if TYPE == "bfloat16" else g.to(tl.float32)
        wide = g.to(tl.float64)
        squares += wide * wide
        bad += tl.where((bits(g) & 0x7F800000) == 0x7F800000, 1.0, 0.0)
    tl.store(partials + piece * 2, tl.sum(squares))
    tl.store(partials + piece * 2 + 1, tl.sum(bad))


@triton.jit
def verdict(partials, request, loss_scale, found_inf, control):
    """`optimizer.verdict.decide`, on the device. request: pieces, the largest norm, what is added to it.

    control: commit, scale, norm, steps committed, steps vetoed. Without pieces nobody looked.
    """
    pieces = tl.load(request).to(tl.int64)
    loss = tl.load(loss_scale).to(tl.float64)
    norm = tl.sqrt(total(partials, 0, pieces, 2, 0)) / loss
    bad = total(partials, 0, pieces, 2, 1)
    padded = norm + tl.load(request + 2)
    ratio = tl.load(request + 1) / tl.where(padded > 0.0, padded, 1.0)
    clip = tl.where((padded > 0.0) & (ratio < 1.0), ratio, 1.0)
    fine = (bad == 0.0) & (norm - norm == 0.0) & (tl.load(found_inf).to(tl.float64) == 0.0)
    commit = tl.where(fine, 1.0, 0.0).to(tl.float64)
    tl.store(control, commit)
    tl.store(control + 1, clip / loss)
    tl.store(control + 2, tl.where(pieces == 0, float("nan"), norm))
    tl.store(control + 3, tl.load(control + 3) + commit)
    tl.store(control + 4, tl.load(control + 4) + 1.0 - commit)
