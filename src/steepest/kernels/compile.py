"""From the text of a module to functions in memory, by way of a cache on disk.

An object file is kept under the hash of everything it follows from: the text, the processor, the compiler's
version. It is written whole or not at all, checked when it is read, and any trouble with the cache costs a
compilation, never a step.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sys
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

log = logging.getLogger("steepest")

FORMAT = "1"
"""Part of every key; raise it when the calling convention changes without a change in the text."""

_LOADED: list[Any] = []
"""Engines own the memory of their functions and live as long as the process."""


def available() -> str | None:
    """None if kernels can be compiled here, else why not."""
    try:
        import llvmlite.binding  # noqa: F401
    except ImportError:
        return "llvmlite is not installed; pip install llvmlite"
    return None


def cache_folder() -> Path:
    """Where compiled kernels are kept: `STEEPEST_CACHE_DIR`, else the user's cache."""
    given = os.environ.get("STEEPEST_CACHE_DIR")
    if given:
        return Path(given) / "kernels"
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", Path.home()))
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "steepest" / "kernels"


def compile_functions(text: str, names: Sequence[str]) -> list[int]:
    """The addresses of the functions of a module, from the cache if it has them."""
    import llvmlite.binding as llvm

    machine, processor = _machine()
    versions = [FORMAT, llvm.llvm_version_info, __import__("llvmlite").__version__, *processor]
    key = hashlib.sha256("\n".join([*map(str, versions), text]).encode()).hexdigest()
    code = _read(key)
    if code is None:
        code = _compile(text)
        _write(key, code)
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    _LOADED.append(engine)
    return [engine.get_function_address(name) for name in names]


@cache
def x86_lanes() -> int:
    """Numbers of 32 bits in the widest register that LLVM may use here, if AVX2 or AVX-512 has it; else 0."""
    if available() is not None:
        return 0
    import llvmlite.binding as llvm

    features = llvm.get_host_cpu_features()
    if features.get("avx512vl"):
        return 16
    return 8 if features.get("avx2") else 0


@cache
def asked_ahead() -> int:
    """Bytes by which kernels ask for memory ahead of its use. Intel's processors with AVX-512 have too little
    under way by themselves; AMD's are no faster for it, or slower (`docs/log.md`)."""
    if x86_lanes() < 16:
        return 0
    import llvmlite.binding as llvm

    return 0 if llvm.get_host_cpu_name().startswith("znver") else 1024


@cache
def _machine() -> tuple[Any, tuple[str, ...]]:
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    triple, cpu = llvm.get_default_triple(), llvm.get_host_cpu_name()
    features = llvm.get_host_cpu_features().flatten()
    # The large model: a function of the C library may lie anywhere.
    target = llvm.Target.from_triple(triple)
    machine = target.create_target_machine(cpu=cpu, features=features, opt=3, jit=True, codemodel="large")
    return machine, (triple, cpu, features)


def _compile(text: str) -> bytes:
    import llvmlite.binding as llvm

    machine, _ = _machine()
    module = llvm.parse_assembly(text)
    module.verify()
    # Vectors are in the text already: the passes that look for them find nothing, and take their time.
    tuning = llvm.create_pipeline_tuning_options(speed_level=2)
    tuning.loop_vectorization = tuning.slp_vectorization = False
    builder = llvm.create_pass_builder(machine, tuning)
    builder.getModulePassManager().run(module, builder)
    return bytes(machine.emit_object(module))


def _read(key: str) -> bytes | None:
    try:
        data = (cache_folder() / f"{key}.o").read_bytes()
    except OSError:
        return None
    digest, code = data[:32], data[32:]
    return code if hashlib.sha256(code).digest() == digest else None


def _write(key: str, code: bytes) -> None:
    """Two processes may write the same file; both write the same bytes, and the second replaces the first."""
    folder, partial = cache_folder(), None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(dir=folder, prefix=key)
        with os.fdopen(handle, "wb") as file:
            file.write(hashlib.sha256(code).digest() + code)
        os.replace(partial, folder / f"{key}.o")
    except OSError as error:
        if partial is not None and os.path.exists(partial):
            os.unlink(partial)
        _complain(str(folder), error.strerror or str(error))


@cache
def _complain(folder: str, why: str) -> None:
    log.warning("kernels are compiled anew in every process: %s cannot be written (%s)", folder, why)
