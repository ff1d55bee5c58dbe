"""Threads that share a step: the same numbers, torch's settings left alone, errors not lost."""

import multiprocessing
from threading import Thread

import pytest
import torch

import steepest
from steepest.contract import Scope
from steepest.engines import foreach, workers
from steepest.rules import RULES

ELEMENT = [name for name, r in RULES.items() if r.scope is Scope.ELEMENT]


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def train(rule, engine):
    generator = torch.Generator().manual_seed(0)
    params = [torch.randn(shape, generator=generator) for shape in [(40, 9), (5,), (333,)]]
    opt = steepest.Optimizer(params, rule, engine=engine, lr=0.01)
    for _ in range(3):
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator)
        opt.step()
    return params


def test_there_are_rules_to_share():
    assert ELEMENT


@pytest.mark.parametrize("name", ELEMENT)
def test_shared_pieces_give_the_reference_bitwise(name, three_threads, monkeypatch):
    shared = []
    monkeypatch.setattr(foreach, "PIECE", 16)
    monkeypatch.setattr(foreach, "share", lambda *args: (shared.append(args), workers.share(*args)))
    for p, q in zip(train(name, "foreach"), train(name, "reference"), strict=True):
        assert torch.equal(p, q)
    steps = 1 if name == "sgd" else 2
    assert len(shared) == (3 if steps > 1 else 0)


def test_every_item_is_drawn_once_by_threads_that_run_torch_alone(three_threads):
    seen, inside = [], []

    def work(items):
        inside.append((torch.get_num_threads(), torch.is_grad_enabled()))
        seen.extend(items)

    workers.share(work, range(1000))
    assert sorted(seen) == list(range(1000))
    assert inside == [(1, False)] * 3


def test_torch_keeps_its_number_of_threads_here_and_in_threads_to_come(three_threads):
    workers.share(lambda items: list(items), range(9))
    later = []
    thread = Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert torch.get_num_threads() == 3 and later == [3]


def test_an_error_in_a_thread_reaches_the_caller(three_threads):
    def work(items):
        raise ArithmeticError(f"piece {next(items)}")

    with pytest.raises(ArithmeticError, match="piece"):
        workers.share(work, range(9))


def _child(queue):
    seen = []
    workers.share(seen.extend, range(9))
    queue.put(sorted(seen))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_makes_its_own_threads(three_threads):
    workers.share(lambda items: list(items), range(9))
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_child, args=(queue,))
    child.start()
    assert queue.get(timeout=30) == list(range(9))
    child.join()
    assert child.exitcode == 0
