"""One name for one parameter, whatever its model is wrapped in."""

from __future__ import annotations

_ANYWHERE = {"_orig_mod", "base_layer"}  # torch.compile's wrapper, and a layer's own weights under an adapter
_FRONT = {"module", "body"}  # data parallelism's wrapper, and a model under a score or value head


def canonical(name: str) -> str:
    """The parameter's name in the plain model.

    `base_model.model.` (peft), `module.` (data parallelism) and `body.` (our heads) go from the front,
    `_orig_mod.` (torch.compile) and `base_layer.` (peft's name for the adapted layer) wherever they stand.
    """
    *path, leaf = name.split(".")
    path = [part for part in path if part not in _ANYWHERE]
    while path and (path[0] in _FRONT or path[:2] == ["base_model", "model"]):
        path = path[1:] if path[0] in _FRONT else path[2:]
    return ".".join([*path, leaf])
