"""The rules of the house, each a function of (module, source) that yields what is wrong with it."""

import ast
import re

SIDE = {"models", "adapters", "data", "objectives"}
FLOORS = {
    **{"contract": 0, "ops": 1},
    **dict.fromkeys(("rules", "apply", "codecs", "schedules", "hardware"), 2),
    **{"kernels": 3, "engines": 3.5, "placements": 3.5, "optimizer": 4},
    **dict.fromkeys(SIDE, 4.5),
    **{"training": 5, "lab": 6, "integrations": 6, "cli": 7, "": 8, "__main__": 8},
}
"""Room to floor; engines may use kernels, and "" is the package's own front door."""
LIMIT = 420
CACHES = {"data.tokenizer", "kernels.compile", "kernels.triton.source"}
"""What keeps a cache on disk, which anyone may delete."""
CLOCKS = {"time", "datetime"}
WRITES = {"write_text", "write_bytes", "mkdir", "mkstemp", "unlink", "rmtree", "touch"}
WRITERS = {("os", "replace"), ("os", "rename"), ("torch", "save"), ("np", "save")}


def room(module):
    """`rules.adam` lives in rules, `contract` is a room of its own, "" is the package itself."""
    return module.split(".")[0]


def imported(source):
    """(dotted module, name) for every import anywhere in the file; the name is None for `import x`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (("." * node.level + (node.module or ""), alias.name) for alias in node.names)


def calls(source):
    """(owner, name) of every call: ("os", "replace") for `os.replace()`, ("", "open") for `open()`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name):
                yield "", node.func.id, node
            elif isinstance(node.func, ast.Attribute):
                yield ast.unparse(node.func.value), node.func.attr, node


def names(tree):
    """Every name in an expression."""
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}


def upward_imports(module, source):
    own = room(module)
    for name, what in imported(source):
        if name.startswith("."):
            yield f"{module}: relative import of {name}"
        if name.split(".")[0] != "steepest":
            continue
        inner = name.split(".")[1:] or [what if what in FLOORS else ""]
        target = inner[0]
        if target == own:
            continue
        if target not in FLOORS:
            yield f"{module}: imports {target}, a room without a floor"
        elif own in SIDE and target != "contract":
            yield f"{module}: the side wing imports only the contract, not {target}"
        elif FLOORS[target] >= FLOORS[own] or (target in SIDE and FLOORS[own] < 5):
            yield f"{module}: imports {target}, which is not below it"


def impure_rules(module, source):
    if room(module) != "rules":
        return
    for node in ast.walk(ast.parse(source)):
        name = getattr(node, "attr", None) or getattr(node, "id", None)
        if name in ("device", "grad", "dist", "rank", "cuda"):
            yield f"{module}: says {name}"
        if isinstance(node, ast.For | ast.comprehension) and "param" in " ".join(names(node.iter)):
            yield f"{module}: loops over parameters"
        if isinstance(node, ast.FunctionDef) and [a.arg for a in node.args.args] == ["p", "g", "s", "h"]:
            loops = (ast.For, ast.While, ast.comprehension)
            yield from (f"{module}: {node.name} loops" for x in ast.walk(node) if isinstance(x, loops))
    for owner, name, _ in calls(source):
        if owner and name.endswith("_") and not name.endswith("__"):
            yield f"{module}: {owner}.{name}() changes its operand"


def prints(module, source):
    if room(module) != "cli":
        for owner, name, _ in calls(source):
            if (owner, name) == ("", "print") or owner in ("sys.stdout", "sys.stderr"):
                yield f"{module}: prints"


def clocks(module, source):
    if room(module) in ("training", "cli") or module.startswith(("lab.report", "lab.bench")):
        return  # cli shows the time left, the benchmark measures it
    for name, _ in imported(source):
        if name.split(".")[0] in CLOCKS:
            yield f"{module}: reads a clock ({name})"


def writes(module, source):
    if room(module) == "training" or module.startswith("lab.report"):
        return
    if module in CACHES or module == "lab.bench.fresh":  # an empty cache for the time of a first step
        return
    for owner, name, node in calls(source):
        given = [*node.args[1:2], *(k.value for k in node.keywords if k.arg == "mode")]
        mode = "".join(str(a.value) for a in given if isinstance(a, ast.Constant))
        opens = name in ("open", "fdopen") and set(mode) & set("wax+")
        if opens or name in WRITES or (owner, name) in WRITERS or owner == "tempfile":
            yield f"{module}: writes files ({owner}.{name})"


def distributed(module, source):
    if room(module) in ("placements", "training"):
        return
    for name, what in imported(source):
        if name.startswith("torch.distributed") or (name, what) == ("torch", "distributed"):
            yield f"{module}: imports torch.distributed"


def doors(module, source):
    """A room's __init__ holds a docstring, imports, and an __all__ of names that it imports."""
    imports, listed = set(), None
    for node in ast.parse(source).body:
        if isinstance(node, ast.ImportFrom):
            imports |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            listed = ast.literal_eval(node.value)
        elif not isinstance(getattr(node, "value", None), ast.Constant):  # a docstring, __version__
            yield f"{module}: has logic in its door, line {node.lineno}"
    if listed is None:
        yield f"{module}: has no __all__"
    for name in sorted(set(listed or ()) - imports):
        yield f"{module}: __all__ names {name!r}, which it does not import"


def long_files(module, source):
    if (count := source.count("\n")) > LIMIT:
        yield f"{module}: {count} lines; past {LIMIT} it is two rooms"


def unfinished(module, source):
    yield from (f"{module}: says {word}" for word in re.findall(r"\bTODO\b|\bFIXME\b|\bXXX\b", source))


CHECKS = [upward_imports, impure_rules, prints, clocks, writes, distributed, long_files, unfinished]
