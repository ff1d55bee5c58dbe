"""Each format by itself: how far a value may move, on average not at all, and how it is stored."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from steepest.codecs import (
    BLOCK,
    PARAM_CODECS,
    SLOT_CODECS,
    Noise,
    codec_bytes,
    decode,
    grid,
    pack,
    part_shape,
    slot_codec,
    stored_name,
    tensor_key,
    unpack,
    word,
)
from steepest.codecs.storage import elements
from steepest.codecs.verbs import UNIT
from steepest.contract import Slot

FACTORED = slot_codec("factored", "v", Slot(nonnegative=True), (64, 64), {})
SIGNS = {True: "signed", False: "unsigned"}
SLOTS = {
    f"{name}-{SIGNS[signed]}-{'stochastic' if stochastic else 'nearest'}": (name, signed, stochastic)
    for name in SLOT_CODECS
    for signed in SIGNS
    for stochastic in (True, False)
}
SCALED = {key: of for key, of in SLOTS.items() if of[0] != "bf16"}
SHAPES = [(4096,), (3, 500), (40, 133), (2, 5, 7), (1,), (130,), ()]


def noise(shape, seed=0, first=0):
    """The noise of a tensor, or of its rows from the element `first` on."""
    index = first + torch.arange(math.prod(shape)).view(shape)
    return Noise(lambda number: word(index, tensor_key(seed, 1, 0), number))


def stored(codec, x, seed=0, first=0):
    """The packed parts of x."""
    parts = codec.encode(x, noise(x.shape, seed, first))
    return {stored_name("m", part): pack(value, codec.parts[part], x.shape) for part, value in parts.items()}


def restored(codec, held, shape):
    types = {stored_name("m", part): of for part, of in codec.parts.items()}
    return decode(codec, "m", {name: unpack(t, types[name], shape) for name, t in held.items()})


def through(codec, x, seed=0):
    return restored(codec, stored(codec, x, seed), x.shape)


def make(key):
    name, signed, stochastic = SLOTS[key]
    return SLOT_CODECS[name](signed, stochastic)


def values(signed, shape, seed, scale=1.0):
    """Eight decades of magnitudes, zeros among them."""
    generator = torch.Generator().manual_seed(seed)
    x = 10 ** (torch.rand(shape, generator=generator) * 8 - 8) * torch.randn(shape, generator=generator)
    x = torch.where(torch.rand(shape, generator=generator) < 0.1, 0.0, x) * scale
    return x if signed else x.abs()


def bound(key, x):
    """How far decoding may be from x, by the format's definition; float64."""
    name, signed, stochastic = SLOTS[key]
    x = x.double().abs()
    if name == "bf16":
        return x * 2.0 ** (-7 if stochastic else -8) + 2.0**-133
    largest = torch.zeros_like(x)
    rows, length = grid(x.shape)
    flat, out = x.reshape(rows, length), largest.view(rows, length)
    for at in range(0, length, BLOCK):
        out[:, at : at + BLOCK] = flat[:, at : at + BLOCK].amax(1, keepdim=True)
    y = torch.where(largest > 0, x / largest, 0.0)
    if name == "fp16":
        error = (y + 2.0**-14) * 2.0 ** (-10 if stochastic else -11) + (0 if signed else 2.0**-24)
    elif name == "fp8":
        least = 1.125 * 2.0 ** (-16 if signed else -32)
        error = (y + least) * 2.0 ** (-3 if stochastic else -4) + (0 if signed else least / 8)
    else:
        levels, power = {
            ("int8", True): (127, 2),
            ("int8", False): (255, 4),
            ("int4", True): (7, 2),
            ("int4", False): (15, 4),
        }[name, signed]
        root, step = y ** (1 / power) * levels, 1.0 if stochastic else 0.5
        error = ((root + step) ** power - root**power + (not signed)) / levels**power
        # One step in float32 is largest / levels^power, which may be a subnormal number.
        error = error + torch.where(largest > 0, (root + step) ** power * 2.0**-149 / largest, 0.0)
    return error * largest * (1 + 1e-3) + largest * 2.0**-20 + 1e-37  # float32 rounds too; TINY is zero


def test_the_sets_are_complete():
    assert len(SLOTS) == 4 * len(SLOT_CODECS) and {"bf16", "fp16", "fp8", "int8", "int4"} == set(SLOT_CODECS)
    assert {"bf16", "split24", "split32", "kahan"} == set(PARAM_CODECS)


@pytest.mark.parametrize("key", SLOTS)
@settings(max_examples=20)
@given(
    shape=st.sampled_from(SHAPES),
    seed=st.integers(0, 2**31),
    scale=st.sampled_from([1e-44, 1e-38, 1e-30, 1e-3, 1.0, 1e30]),
)
def test_a_value_comes_back_within_the_format_s_bound(key, shape, seed, scale):
    codec, x = make(key), values(SLOTS[key][1], shape, seed, scale)
    y = through(codec, x, seed)
    assert y.shape == x.shape and y.dtype == torch.float32 and y.isfinite().all()
    assert ((y.double() - x.double()).abs() <= bound(key, x)).all()
    assert SLOTS[key][1] or (y >= 0).all()


PARAM_BOUNDS = {"bf16": 2.0**-7, "split24": 2.0**-15, "split32": 0.0, "kahan": 2.0**-16}


@pytest.mark.parametrize("name", PARAM_CODECS)
@given(seed=st.integers(0, 2**31), scale=st.sampled_from([1e-30, 1e-3, 1.0, 1e30]))
def test_a_parameter_comes_back_within_its_bound(name, seed, scale):
    x = values(True, (3, 50), seed, scale)
    y = through(PARAM_CODECS[name], x, seed)
    assert ((y.double() - x.double()).abs() <= x.double().abs() * PARAM_BOUNDS[name] + 1e-40).all()


@given(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=64))
def test_split32_is_exact_for_every_bit_pattern(patterns):
    b = torch.tensor(patterns, dtype=torch.int32)
    x = b.view(torch.float32)
    y = through(PARAM_CODECS["split32"], x)
    finite = ~x.isnan()
    assert torch.equal(y.view(torch.int32)[finite], b[finite]) and y[~finite].isnan().all()


@pytest.mark.parametrize("name", PARAM_CODECS)
def test_a_parameter_that_is_bfloat16_already_lacks_nothing(name):
    x = values(True, (4, 64), 3).bfloat16()
    held = stored(PARAM_CODECS[name], x.float(), seed=5)
    assert torch.equal(held.pop("m"), x) and all(not t.any() for t in held.values())


@pytest.mark.parametrize("key", [key for key, of in SLOTS.items() if of[2]])
def test_stochastic_rounding_is_right_on_average(key):
    """The same block many times, each with its own noise; 5 sigma."""
    codec, count = make(key), 4096
    x = torch.rand(BLOCK, generator=torch.Generator().manual_seed(0)) * 0.9 + 0.05
    x = x * torch.where(torch.arange(BLOCK) % 2 > 0, 1, -1) if SLOTS[key][1] else x
    y = through(codec, x.expand(count, BLOCK).contiguous(), seed=1).double()
    off, spread = y.mean(0) - x.double(), y.std(0)
    assert (off.abs() <= 5 * spread / math.sqrt(count) + 1e-6).all()
    assert (spread > 0).float().mean() > 0.9  # and it is not rounding to nearest


@pytest.mark.parametrize("name", ["bf16", "split24"])
def test_stochastic_parameters_are_right_on_average(name):
    x = torch.rand(BLOCK, generator=torch.Generator().manual_seed(0)) + 0.5
    y = through(PARAM_CODECS[name], x.expand(4096, BLOCK).contiguous(), seed=1).double()
    assert ((y.mean(0) - x.double()).abs() <= 5 * y.std(0) / 64 + 1e-7).all() and (y.std(0) > 0).any()


@pytest.mark.parametrize("key", [key for key, of in SLOTS.items() if not of[2]])
@settings(max_examples=20)
@given(shape=st.sampled_from(SHAPES), seed=st.integers(0, 2**31))
def test_rounding_to_nearest_twice_is_rounding_once(key, shape, seed):
    codec = make(key)
    once = stored(codec, values(SLOTS[key][1], shape, seed))
    again = stored(codec, restored(codec, once, shape))
    assert torch.equal(once["m"], again["m"])
    if "m.scale" in once:  # the largest value of a block may be stored a hair off
        torch.testing.assert_close(once["m.scale"], again["m.scale"], rtol=2.0**-13, atol=0)


@pytest.mark.parametrize("key", SCALED)
def test_a_block_of_zeros_is_zeros_and_does_not_touch_its_neighbours(key):
    x = values(SLOTS[key][1], (2, 3 * BLOCK), 1)
    x[:, BLOCK : 2 * BLOCK] = 0.0
    x[1, :BLOCK] = 1e-42
    y = through(make(key), x)
    assert not y[:, BLOCK : 2 * BLOCK].any() and not y[1, :BLOCK].any()
    assert y[0, :BLOCK].any() and y[:, 2 * BLOCK :].any()


@pytest.mark.parametrize("key", [key for key in SCALED if not SCALED[key][1]])
def test_a_second_moment_is_never_zero_beside_larger_ones(key):
    x = torch.zeros(BLOCK)
    x[3] = 1e-6
    assert (through(make(key), x) > 0).all()


@pytest.mark.parametrize("key", [key for key, of in SLOTS.items() if of[1]])
def test_signs_are_kept(key):
    x = values(True, (4, 200), 2)
    y = through(make(key), x)
    assert ((y == 0) | (y.sign() == x.sign())).all()


@pytest.mark.parametrize("shape", [(40, 133), (2, 5, 7), (1, 1), (64, 128)])
def test_factored_is_exact_for_a_product_and_keeps_the_means_of_anything(shape):
    generator = torch.Generator().manual_seed(0)
    row, column = (
        torch.rand((*shape[:-1], 1), generator=generator),
        torch.rand((*shape[:-2], 1, shape[-1]), generator=generator),
    )
    torch.testing.assert_close(through(FACTORED, row * column), row * column)
    x = torch.rand(shape, generator=generator)
    torch.testing.assert_close(through(FACTORED, x).mean(-1), x.mean(-1))
    assert not through(FACTORED, torch.zeros(shape)).any()


ALL = {**{key: make(key) for key in SLOTS}, **PARAM_CODECS}


@pytest.mark.parametrize("key", ALL)
@settings(max_examples=15)
@given(shape=st.lists(st.integers(1, 140), max_size=3))
def test_what_is_stored_has_the_bytes_and_shapes_that_are_declared(key, shape):
    x = torch.ones(shape)
    held = stored(ALL[key], x)
    assert sum(t.numel() * t.element_size() for t in held.values()) == codec_bytes(ALL[key], shape)
    for part, of in ALL[key].parts.items():
        t = held[stored_name("m", part)]
        assert tuple(t.shape) == part_shape(of, shape) and t.dtype == of.dtype


@pytest.mark.parametrize("key", ALL)
@settings(max_examples=12)
@given(
    rows=st.integers(2, 9),
    rest=st.sampled_from([(7,), (133,), (128,), (300,), (3, 50), (2, 2, 40)]),
    data=st.data(),
    seed=st.integers(0, 99),
)
def test_a_tensor_cut_along_its_first_dimension_is_stored_as_the_whole(key, rows, rest, data, seed):
    codec, x = ALL[key], values(key not in SLOTS or SLOTS[key][1], (rows, *rest), seed)
    cut = data.draw(st.integers(1, rows - 1))
    whole = stored(codec, x, seed)
    above = stored(codec, x[:cut], seed)
    below = stored(codec, x[cut:], seed, first=cut * math.prod(rest))
    for name, t in whole.items():
        assert torch.equal(t, torch.cat((above[name], below[name])))


@given(shape=st.lists(st.integers(1, 300), min_size=1, max_size=3))
def test_every_element_has_the_scale_of_its_block(shape):
    rows, length = grid(shape)
    per_row = -(-length // BLOCK)
    scale = torch.arange(rows * per_row, dtype=torch.float32).view(rows, per_row)
    spread = elements(scale, shape).reshape(rows, length)
    assert math.prod(shape) == rows * length
    assert torch.equal(spread[:, ::BLOCK], scale) and torch.equal(spread[:, -1], scale[:, -1])


def test_noise_depends_on_seed_step_parameter_and_element():
    index = torch.arange(1000)
    keys = [tensor_key(*of) for of in [(0, 1, 0), (1, 1, 0), (0, 2, 0), (0, 1, 1)]]
    words = [word(index, key, number) for key in keys for number in (0, 1)]
    assert all(w.dtype == torch.int32 and w.unique().numel() > 990 for w in words)
    for i, a in enumerate(words):
        for b in words[:i]:
            assert (a == b).float().mean() < 0.01


DRAWS = [(8, 0), (12, 0), (16, 0), (20, 0), (32, 0), (8, 1), (16, 2)]
"""(upper bits that are taken, number of the word)."""


@pytest.mark.parametrize(("count", "number"), DRAWS)
def test_draws_are_even_and_know_nothing_of_each_other(count, number):
    """Between neighbours, rows, words, steps, seeds and parameters; 5 sigma."""
    size = 2**16
    index = torch.arange(size)

    def draw(key=(0, 1, 0), number=number, lag=0):
        bits = (word(index + lag, tensor_key(*key), number).long() & 0xFFFFFFFF) >> (32 - count)
        return bits.double() / 2**count - 0.5 + 0.5 / 2**count

    base = draw()
    others = [draw(lag=n) for n in (1, 2, 3, 4, 8, 64, 128, 768, 1024, 4096)]
    others += [draw(number=n) for n in range(4) if n != number] + [draw(number=number + 1, lag=1)]
    others += [draw((0, 2, 0)), draw((0, 1001, 0)), draw((1, 1, 0)), draw((0, 1, 1)), draw((0, 1, 64))]
    assert abs(base.mean()) < 5 * 12**-0.5 / size**0.5
    assert base.pow(2).mean().item() == pytest.approx(1 / 12, rel=5 * 0.8**0.5 / size**0.5)
    for other in others:
        assert abs((base * other).mean()) * 12 < 5 / size**0.5


def test_neighbours_fall_into_all_pairs_of_intervals_alike():
    """Chi-squared of 32 by 32 cells over 2^18 elements, under 100 keys: 1023 on average, 45 about it."""
    index, found = torch.arange(2**18), []
    for step in range(100):
        cell = word(index, tensor_key(3, step, 0), 0).long() + 2**31 >> 27
        counts = torch.bincount(cell[:-1] * 32 + cell[1:], minlength=1024).double()
        expected = counts.sum() / 1024
        found.append(((counts - expected) ** 2 / expected).sum().item())
    assert abs(sum(found) / 100 - 1023) < 5 * 4.5 and max(found) < 1023 + 6 * 45


def test_every_draw_has_a_word_of_its_own_and_takes_its_upper_bits():
    asked = []

    def words(number):
        asked.append(number)
        return torch.tensor(-(2**31) + 5, dtype=torch.int32)

    draw = Noise(words)
    assert (int(draw.whole(16)), int(draw.whole(31))) == (2**15, 2**30 + 2) and asked == [0, 1]
    assert float(draw.real()) * UNIT == pytest.approx(-0.5, abs=3e-6) and asked[-1] == 2


@pytest.mark.parametrize("lowest", [True, False])
def test_a_real_draw_never_adds_up_to_one(lowest):
    extreme = torch.tensor(-(2**31) if lowest else 2**31 - 1, dtype=torch.int32)
    u = Noise(lambda number: extreme).real() * UNIT + 0.5
    assert 0 <= u < 1 and u.dtype == torch.float32


@pytest.mark.parametrize(
    "key", [k for k, (name, _, rounds) in SLOTS.items() if name.startswith("int") and rounds]
)
@pytest.mark.parametrize("extreme", [-(2**31), -1, 0, 2**31 - 1])
def test_no_draw_takes_a_code_past_its_ends(key, extreme):
    """The largest of a block and zero, under the least and the greatest noise."""
    codec, x = make(key), torch.tensor([[1.0, 0.0] + [0.5] * 126])
    noise = Noise(lambda number: torch.full(x.shape, extreme, dtype=torch.int32))
    parts = codec.encode(x, noise)
    name, signed, _ = SLOTS[key]
    last = {("int8", True): 127, ("int8", False): 255, ("int4", True): 7, ("int4", False): 15}[name, signed]
    codes = (parts[""][0] & (7 if (name, signed) == ("int4", True) else 255)).tolist()
    assert last - 1 <= codes[0] <= last and codes[1] == (0 if signed else 1)
