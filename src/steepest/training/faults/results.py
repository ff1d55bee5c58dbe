"""What the laboratory has found, for people, for CI and for later."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch

from steepest.training.files import write_atomic


@dataclass(frozen=True)
class Result:
    """One row. happened: in words; of a row that failed, what went wrong."""

    number: int
    fault: str
    must: str
    passed: bool
    happened: str
    seconds: float


def write_json(results: Sequence[Result], facts: Mapping[str, Any], path: Path) -> None:
    """All results, and what they are of. facts: config, ranks, placement, seed."""
    versions = {"torch": str(torch.__version__), "python": platform.python_version()}
    record = {
        "passed": sum(result.passed for result in results),
        "of": len(results),
        "seconds": round(sum(result.seconds for result in results), 1),
        "versions": versions,
        **facts,
        "rows": [{**asdict(result), "seconds": round(result.seconds, 2)} for result in results],
    }
    write_atomic(path, json.dumps(record, indent=1, ensure_ascii=False) + "\n")


def write_junit(results: Sequence[Result], path: Path) -> None:
    """A JUnit file: a test case for every row."""
    failures = sum(not result.passed for result in results)
    seconds = sum(result.seconds for result in results)
    counts = {"tests": str(len(results)), "failures": str(failures), "time": f"{seconds:.2f}"}
    suite = ElementTree.Element("testsuite", {"name": "steepest faults", **counts})
    for result in results:
        named = {"name": f"{result.number} {result.fault}", "time": f"{result.seconds:.2f}"}
        case = ElementTree.SubElement(suite, "testcase", {"classname": "steepest.faults", **named})
        if not result.passed:
            ElementTree.SubElement(case, "failure", message=result.happened).text = result.must
    write_atomic(path, ElementTree.tostring(suite, encoding="utf-8", xml_declaration=True))
