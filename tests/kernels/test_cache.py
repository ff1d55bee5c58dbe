"""The cache of compiled kernels: trouble with it costs a compilation, never a step, and never a wrong one."""

import errno
import logging
import os
import subprocess
import sys

import pytest
import torch

import steepest
from steepest.kernels import compile as compiling
from steepest.kernels.build import prepass

TEXT = "define void @f(ptr %args) {\n  ret void\n}\n"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("STEEPEST_CACHE_DIR", str(tmp_path))
    compiling._complain.cache_clear()
    return tmp_path / "kernels"


@pytest.fixture
def compiled(monkeypatch):
    """The texts that were really compiled."""
    texts, real = [], compiling._compile
    monkeypatch.setattr(compiling, "_compile", lambda text: texts.append(text) or real(text))
    return texts


def call():
    (address,) = compiling.compile_functions(TEXT, ["f"])
    assert address
    return address


def test_the_second_time_it_is_read(folder, compiled):
    call(), call()
    assert len(compiled) == 1 and len(list(folder.iterdir())) == 1


def test_it_lies_where_it_is_told_to_or_in_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("STEEPEST_CACHE_DIR", str(tmp_path))
    assert compiling.cache_folder() == tmp_path / "kernels"
    monkeypatch.delenv("STEEPEST_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    if sys.platform == "linux":
        assert compiling.cache_folder() == tmp_path / "home" / "steepest" / "kernels"


@pytest.mark.parametrize("damage", [lambda d: d[:-7], lambda d: b"", lambda d: d[:40] + b"x" + d[41:]])
def test_a_damaged_file_is_compiled_again_and_replaced(folder, compiled, damage):
    call()
    (file,) = folder.iterdir()
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    call()
    assert len(compiled) == 2 and file.read_bytes() == whole


@pytest.mark.parametrize("change", ["FORMAT", "version", "processor"])
def test_another_version_has_another_file(folder, compiled, monkeypatch, change):
    call()
    if change == "FORMAT":
        monkeypatch.setattr(compiling, "FORMAT", "another")
    elif change == "version":
        monkeypatch.setattr("llvmlite.__version__", "0.0.1")
    else:
        machine, facts = compiling._machine()
        monkeypatch.setattr(compiling, "_machine", lambda: (machine, (*facts, "+another")))
    call()
    assert len(compiled) == 2 and len(list(folder.iterdir())) == 2


def test_a_folder_that_cannot_be_made_is_named_once(tmp_path, monkeypatch, compiled, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("STEEPEST_CACHE_DIR", str(tmp_path / "file"))
    compiling._complain.cache_clear()
    with caplog.at_level(logging.WARNING, "steepest"):
        call(), call()
    assert len(compiled) == 2
    assert len(caplog.records) == 1 and "cannot be written" in caplog.text and "file" in caplog.text


def test_a_full_disk_leaves_nothing_behind(folder, compiled, monkeypatch, caplog):
    class Full:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            return False

        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

    def full(handle, mode):
        os.close(handle)
        return Full()

    monkeypatch.setattr(os, "fdopen", full)
    with caplog.at_level(logging.WARNING, "steepest"):
        call()
    assert list(folder.iterdir()) == [] and "No space left" in caplog.text


SCRIPT = """
import torch, steepest
torch.set_num_threads(1)
p = torch.linspace(-1, 1, 4096).view(64, 64).requires_grad_()
p.grad = torch.ones_like(p)
steepest.LAMB([p], lr=0.1, state="int8", engine="fused").step()
print(p.detach().double().sum().item())
"""


def test_two_processes_compile_the_same_kernel_at_once(folder):
    env = {**os.environ, "STEEPEST_CACHE_DIR": str(folder.parent)}
    runs = [
        subprocess.Popen([sys.executable, "-c", SCRIPT], env=env, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    outputs = [run.communicate(timeout=120)[0] for run in runs]
    assert all(run.returncode == 0 for run in runs)
    assert len(set(outputs)) == 1 and float(outputs[0])
    files = list(folder.iterdir())
    assert files and all(file.suffix == ".o" for file in files)
    third = subprocess.run([sys.executable, "-c", SCRIPT], env=env, capture_output=True, text=True)
    assert third.stdout == outputs[0] and sorted(folder.iterdir()) == sorted(files)


def test_a_step_survives_every_trouble(tmp_path, monkeypatch):
    """The numbers do not depend on where a kernel comes from."""
    monkeypatch.setenv("STEEPEST_CACHE_DIR", str(tmp_path))

    def step():
        steepest.engines.classes._KERNELS.clear()
        p = torch.ones(64, 64, requires_grad=True)
        p.grad = torch.full_like(p, 0.5)
        steepest.AdamW([p], lr=0.1, engine="fused").step()
        return p.detach()

    first = step()
    for file in (tmp_path / "kernels").iterdir():
        file.write_bytes(file.read_bytes()[:100])
    assert torch.equal(step(), first) and torch.equal(step(), first)


def test_printing_is_deterministic():
    """The key of the cache is the text, so the same kernel has to print the same text in every process."""
    assert prepass(torch.float32).printed == prepass(torch.float32).printed
    assert prepass(torch.float32).printed[0] != prepass(torch.bfloat16).printed[0]
