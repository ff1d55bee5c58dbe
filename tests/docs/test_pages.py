"""The optimizers' pages: one a card, complete, short, and what can be generated is fresh."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
import torch

import steepest
from steepest.rules import CARDS

DOCS = Path(__file__).parents[2] / "docs"
PAGES = DOCS / "optimizers"

spec = importlib.util.spec_from_file_location("docs_generate", DOCS / "generate.py")
generate = importlib.util.module_from_spec(spec)
spec.loader.exec_module(generate)


def page(name: str) -> str:
    return (PAGES / f"{name}.md").read_text(encoding="utf-8")


def test_there_is_one_page_a_card():
    assert len(CARDS) >= 11
    assert {path.stem for path in PAGES.glob("*.md")} == {*CARDS, "index"}


def test_what_is_generated_is_fresh():
    stale = [path.name for path, text in generate.fresh().items() if path.read_text(encoding="utf-8") != text]
    assert not stale, "run python docs/generate.py"


@pytest.mark.parametrize("name", [*CARDS, "index"])
def test_a_page_has_its_marks_once(name):
    assert len(generate.MARKED.findall(page(name))) == 1


@pytest.mark.parametrize("name", CARDS)
def test_a_page_is_complete_and_one_screen(name):
    text = page(name)
    assert text.startswith(f"# {CARDS[name].title}\n")
    headings = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert headings == ["Formula", "When to use it", "Where implementations disagree", "Example"]
    assert text.count("$$") >= 2 and text.count("$$") % 2 == 0
    assert len(text.splitlines()) <= 80
    assert max(map(len, re.findall(r"^[^|\n].*$", text, re.MULTILINE))) <= 120


@pytest.mark.parametrize("name", CARDS)
def test_a_page_s_example_is_short_and_its_own(name):
    (code,) = re.findall(r"```python\n(.*?)```", page(name), re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 8
    assert f"steepest.{CARDS[name].constructor}(" in code


@pytest.mark.parametrize("name", CARDS)
def test_every_dialect_is_on_its_page(name):
    for dialect in CARDS[name].rule.dialects:
        assert f"`{dialect}`" in page(name)


def test_the_memory_figures_are_those_of_a_real_optimizer():
    small = [(256, 384), (130, 128), (64,), (3, 200, 300)]
    for card in CARDS.values():
        params = [torch.nn.Parameter(torch.zeros(shape)) for shape in small]
        opt = getattr(steepest, card.constructor)(params, **card.settings)
        hyper = {**card.rule.defaults(), **card.settings}
        shapes = [s for p in params for s in card.rule.slots_for(p.shape, hyper).values()]
        assert opt.state_bytes() == 4 * sum(s.numel() for s in shapes)


def test_the_shapes_are_gpt2_s():
    assert sum(torch.Size(shape).numel() for shape in generate.GPT2) == 124_439_808


def test_every_command_and_option_is_documented():
    text = (DOCS / "cli.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `.*$", text, re.MULTILINE)
    assert len(rows) >= 15
    assert all(len(row.split("|")[2].strip()) > 10 for row in rows), "an option without help"
    for name in ("compare", "train", "report", "optimizers", "bench step", "kernels show"):
        assert f"## steepest {name}\n" in text
