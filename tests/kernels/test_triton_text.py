"""What is printed for GPUs: for every rule, in files that are written once, compiled without a GPU."""

import logging
import re
from pathlib import Path

import pytest
import torch

from laws.cases import CASES, LARGE, every_rule, legal
from steepest.codecs import SLOT_NAMES, param_codec, slot_codec
from steepest.engines.classes import always
from steepest.kernels import Kernel, Untraceable, build
from steepest.kernels import graph as vocabulary
from steepest.kernels.trace import ON_NUMBERS
from steepest.kernels.triton import available, load, print_triton, source
from steepest.kernels.triton.lines import CASTS, COMPARE, PLAIN
from steepest.kernels.triton.numbers import FORMS


def kernel(case, name="fp32", param=None, telemetry=False) -> Kernel:
    """The kernel of a large matrix, with this codec wherever it can work."""
    dtype = torch.bfloat16 if param else torch.float32
    shapes = case.rule.slots_for(torch.Size(LARGE), case.full)
    fits = legal(case, name, [LARGE])
    h = case.live()
    codecs = {"p": param_codec(param, dtype)}
    for slot in shapes:
        chosen = {slot: name} if fits.get(slot) else None
        codecs[slot] = slot_codec(chosen, slot, case.rule.slots[slot], LARGE, vars(h))
    vectors = {s: "row" if shapes[s][1] == 1 else "column" for s in shapes if case.rule.slots[s].shape}
    return build(case.rule, always(h), codecs, dtype, vectors, telemetry)


def printed(case, *options):
    own = kernel(case, *options)
    return print_triton(own.schedule, own.layout)


def test_the_table_covers_every_rule():
    assert every_rule(CASES)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_rule_is_printed_whatever_the_codecs(case):
    """A quarter of the codecs each case, in turn."""
    turn = CASES.index(case)
    for number, name in list(enumerate(SLOT_NAMES))[turn % 4 :: 4]:
        own = printed(case, name, ["bf16", "split24", "kahan", None][number % 4], bool(number % 2))
        compile(own.text, name, "exec")
        assert [launch.kind for launch in own.launches][:1] == ["numbers"]
        assert re.findall(r"^def (\w+)", own.text, re.M) == [launch.name for launch in own.launches]


def test_every_operation_of_the_graph_has_an_instruction():
    operations = {
        *vocabulary.FLOAT_OPS.values(),
        *vocabulary.INT_OPS.values(),
        *vocabulary.BOOL_OPS.values(),
        *vocabulary.COMPARE.values(),
        *vocabulary.ROUNDS.values(),
        *(name for name, _, _ in vocabulary.CASTS.values()),
    }
    assert operations and operations <= {*PLAIN, *CASTS, *COMPARE, "pow"}
    assert set(ON_NUMBERS.values()) - {ON_NUMBERS[torch.clamp]} <= set(FORMS)


def test_what_triton_does_not_know_is_refused(monkeypatch):
    monkeypatch.setattr("steepest.kernels.triton.lines.PLAIN", {})
    with pytest.raises(Untraceable, match="the GPU printer has no instruction for"):
        printed(next(c for c in CASES if c.rule.name == "lion"))


# ------------------------------------------------------------ files


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("STEEPEST_CACHE_DIR", str(tmp_path))
    load.cache_clear()
    source._complain.cache_clear()
    yield tmp_path / "kernels" / "triton"
    load.cache_clear()


TEXT = "ANSWER = 42\n"


def test_a_module_is_written_once(cache):
    assert load(TEXT).ANSWER == 42
    (file,) = cache.iterdir()
    before = file.stat().st_mtime_ns
    load.cache_clear()
    assert load(TEXT).ANSWER == 42
    assert [f.stat().st_mtime_ns for f in cache.iterdir()] == [before]


@pytest.mark.parametrize("damage", ["", "ANSWER = 4", "ANSWER = 13\n"])
def test_a_damaged_file_is_replaced(cache, damage):
    load(TEXT)
    (file,) = cache.iterdir()
    file.write_text(damage)
    load.cache_clear()
    assert load(TEXT).ANSWER == 42 and file.read_text() == TEXT


def test_a_folder_that_cannot_be_written_costs_one_warning(cache, caplog):
    cache.parent.mkdir(parents=True)
    cache.write_text("in the way")
    with caplog.at_level(logging.WARNING, logger="steepest"):
        assert load(TEXT).ANSWER == 42
        assert load("ANSWER = 43\n").ANSWER == 43
    assert caplog.text.count("temporary folder") == 1


# ------------------------------------------------------------ machine code

TYPES = {
    **dict.fromkeys(("pointers", "facts", "work"), "*i64"),
    **dict.fromkeys(("constants", "scalars"), "*fp32"),
    **dict.fromkeys(("partials", "control", "steps", "live"), "*fp64"),
}


def assembly(function, constants, warps):
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature = {name: TYPES.get(name, "constexpr") for name in function.arg_names}
    even = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(function.arg_names) if name in TYPES}
    made = triton.compile(
        ASTSource(function, signature, constexprs=constants, attrs=even),
        target=GPUTarget("cuda", 90, 32),
        options={"num_warps": warps, "enable_fp_fusion": True},
    )
    return made.asm["ptx"]


def test_kernels_compile_without_a_gpu_and_move_wide_words_where_memory_is_aligned():
    if (why := available()) is not None:
        pytest.skip(why)
    for name in ("adamw", "adafactor"):
        case = next(c for c in CASES if c.rule.name == name)
        own = kernel(case, "int8")
        module = load(print_triton(own.schedule, own.layout).text)
        rows, warps = (32, 8) if own.by_rows else (8, 4)
        for aligned in (False, True):
            text = assembly(module.pass_0, {"ALIGNED": aligned, "BLOCKS": rows}, warps)
            assert bool(re.search(r"ld\.global\S*\.v[24]\.b32", text)) is aligned
            assert ("fma.rn.f32" in text and "div.rn.f32" in text) or name == "adafactor"


def test_the_pass_over_gradients_moves_wide_words():
    if (why := available()) is not None:
        pytest.skip(why)
    from steepest.kernels.triton import device

    constants = {"ALIGNED": True, "TYPE": "bfloat16", "TILE": 1024}
    assert re.search(r"ld\.global\S*\.v4\.b32", assembly(device.measure, constants, 4))


def test_generated_files_name_no_place():
    texts = {printed(case).text for case in CASES[:5]}
    places = {str(Path.home()), str(Path.cwd())}
    assert texts and not any(place in text for text in texts for place in places)
