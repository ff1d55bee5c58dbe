"""What a finished run of stages leaves: its models as folders, its record."""

from __future__ import annotations

from pathlib import Path

from steepest.training.save import save_model, save_record
from steepest.training.session import Session


def export(session: Session, folder: Path) -> None:
    """Write `model/`, a folder for each model that a stage has trained beside it, and `run.json`."""
    if session.builder.policy is not None:
        save_model(session.builder.final(), session.config, folder / "model")
    for name, model in session.builder.products.items():
        save_model(model, session.config, folder / f"model-{name}")
    save_record(session.config, [result.record() for result in session.results], folder)
