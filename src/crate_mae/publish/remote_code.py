"""Two files of code that transformers loads where this package is not installed.

They are put together from the package's own sources: every definition that its classes for
transformers need, and no other, so that there is one place where each thing is written.
"""

import ast
import builtins
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files

PACKAGE = "crate_mae"
CONFIGURATION, MODELING = "configuration_crate_mae.py", "modeling_crate_mae.py"
CODE = (CONFIGURATION, MODELING)
AUTO_MAP = {
    "AutoConfig": "configuration_crate_mae.CrateMAEConfig",
    "AutoModel": "modeling_crate_mae.CrateMAEModel",
    "AutoModelForPreTraining": "modeling_crate_mae.CrateMAEForPreTraining",
    "AutoModelForImageClassification": "modeling_crate_mae.CrateMAEForImageClassification",
    "AutoBackbone": "modeling_crate_mae.CrateMAEBackbone",
    "AutoImageProcessor": "modeling_crate_mae.CrateMAEImageProcessor",
}
"""Which class of the two files stands for which of transformers' Auto classes."""

_ROOTS = {
    CONFIGURATION: (f"{PACKAGE}.transformers.configuration_crate_mae",),
    MODELING: (
        f"{PACKAGE}.transformers.modeling_crate_mae",
        f"{PACKAGE}.transformers.image_processing_crate_mae",
    ),
}
_HEAD = '''# Copyright 2026 The CRATE-MAE developers. MIT licence.
"""{what} of CRATE-MAE for transformers with trust_remote_code.

Put together by crate-mae from its own sources; where that package is installed, its classes serve
and this file is not needed.
"""

'''


_Pair = tuple[str, str]
"""A module and a name that it defines."""


@dataclass
class _Source:
    """One module of the package, taken apart."""

    name: str
    definitions: dict[str, str] = field(default_factory=dict)
    """Text by name, in the order of the file."""
    uses: dict[str, set[str]] = field(default_factory=dict)
    """The names that each definition mentions."""
    hidden: dict[str, str] = field(default_factory=dict)
    """The module of this package that a definition imports inside itself."""
    inside: dict[str, tuple[str, str]] = field(default_factory=dict)
    """(module, name) of what is imported from this package, by the name it has here."""
    outside: dict[str, str] = field(default_factory=dict)
    """The statement that imports a name from elsewhere."""


def remote_code() -> dict[str, bytes]:
    """The two files by name.

    Raises ValueError where the sources cannot be put together: a definition that imports this
    package inside itself, or two of one name that others import.
    """
    configuration = _reached(_ROOTS[CONFIGURATION], known=set())
    modeling = _reached(_ROOTS[MODELING], known=configuration)
    return {
        CONFIGURATION: _text("Configuration", configuration, set()).encode(),
        MODELING: _text("Models and image processor", modeling, configuration).encode(),
    }


def _reached(roots: tuple[str, ...], known: set[_Pair]) -> set[_Pair]:
    """Definitions that the roots need, apart from known ones."""
    waiting = [(root, name) for root in roots for name in _parsed(root).definitions]
    found: set[_Pair] = set()
    while waiting:
        module, name = waiting.pop()
        if (module, name) in found or (module, name) in known:
            continue
        found.add((module, name))
        source = _parsed(module)
        if name in source.hidden:
            raise ValueError(f"{module} imports {source.hidden[name]} inside {name}")
        for used in source.uses[name]:
            if used in source.definitions:
                waiting.append((module, used))
            elif used in source.inside:
                waiting.append(_home(*source.inside[used]))
    return found


def _home(module: str, name: str) -> _Pair:
    """Where a name is defined that a module defines or passes on."""
    source = _parsed(module)
    if name not in source.definitions and name in source.inside:
        return _home(*source.inside[name])
    return module, name


def _text(what: str, wanted: set[_Pair], known: set[_Pair]) -> str:
    modules = _in_order({module for module, _ in wanted})
    lines: dict[str, str] = {}
    borrowed: set[str] = set()
    taken: dict[str, str] = {}
    parts: list[str] = []
    for module in modules:
        source = _parsed(module)
        own = [name for name in source.definitions if (module, name) in wanted]
        renamed = {name: f"{name}_of_{module.rpartition('.')[2]}" for name in own if name in taken}
        for name in renamed:
            _check_private(module, name, modules)
        for name in own:
            taken.setdefault(name, module)
            text = source.definitions[name]
            for old, new in renamed.items():
                text = re.sub(rf"(?<![\w.]){old}\b", new, text)
            parts.append(text)
            for used in source.uses[name]:
                if (module, used) in known:
                    borrowed.add(used)
                elif used in source.inside and _home(*source.inside[used]) in known:
                    borrowed.add(source.inside[used][1])
                elif used in source.outside:
                    statement = source.outside[used]
                    if lines.setdefault(used, statement) != statement:
                        raise ValueError(f"{used} is imported from two places: {module}")
    imports = sorted(set(lines.values()), key=lambda line: (line.startswith("from"), line))
    if borrowed:
        names = ", ".join(sorted(borrowed))
        imports.append(f"from .{CONFIGURATION.removesuffix('.py')} import {names}")
    return _HEAD.format(what=what) + "\n".join(imports) + "\n\n\n" + "\n\n\n".join(parts) + "\n"


def _check_private(module: str, name: str, others: list[str]) -> None:
    """Raise ValueError where a name that must be changed is imported by another module."""
    for other in others:
        if (module, name) in {_home(*pair) for pair in _parsed(other).inside.values()}:
            raise ValueError(f"{name} of {module} is also defined elsewhere, and imported")


def _in_order(modules: set[str]) -> list[str]:
    """Modules with those first that others import."""
    ordered: list[str] = []

    def visit(module: str) -> None:
        if module in ordered:
            return
        for other, _ in _parsed(module).inside.values():
            visit(other)
        ordered.append(module)

    for module in sorted(modules):
        visit(module)
    return [module for module in ordered if module in modules]


@cache
def _parsed(module: str) -> _Source:
    """A module of the package, taken apart."""
    path = module.removeprefix(f"{PACKAGE}.").replace(".", "/") + ".py"
    text = files(PACKAGE).joinpath(path).read_text(encoding="utf-8")
    lines = text.splitlines()
    source = _Source(module)
    last: str | None = None
    for node in ast.parse(text).body:
        first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
        written = "\n".join(lines[first - 1 : node.end_lineno])
        if isinstance(node, ast.Import | ast.ImportFrom):
            _note_imports(source, node)
            last = None
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            if last is not None:  # what is said of a constant stands below it
                source.definitions[last] += "\n" + written
        elif each := _one_by_one(node):
            for name, value in each.items():
                source.definitions[name] = f"{name} = {ast.unparse(value)}"
                source.uses[name] = _used(value)
                last = name
        elif names := [name for name in _defined(node) if name != "__all__"]:
            last = names[0]
            source.definitions[last] = written
            source.uses[last] = _used(node)
            source.hidden.update((last, inner) for inner in _imported_inside(node))
    return source


def _defined(node: ast.stmt) -> Iterator[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        yield node.name
    elif isinstance(node, ast.Assign | ast.AnnAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        yield from (target.id for target in targets if isinstance(target, ast.Name))


def _one_by_one(node: ast.stmt) -> dict[str, ast.expr]:
    """The values by name of a statement that gives several names a value each; else none."""
    if not isinstance(node, ast.Assign) or not isinstance(node.value, ast.Tuple):
        return {}
    target = node.targets[0]
    if not isinstance(target, ast.Tuple):
        return {}
    pairs = zip(target.elts, node.value.elts, strict=True)
    return {name.id: value for name, value in pairs if isinstance(name, ast.Name)}


def _used(node: ast.AST) -> set[str]:
    names = {below.id for below in ast.walk(node) if isinstance(below, ast.Name)}
    return names - set(dir(builtins))


def _imported_inside(node: ast.AST) -> Iterator[str]:
    for below in ast.walk(node):
        if isinstance(below, ast.ImportFrom) and (below.module or "").startswith(PACKAGE):
            yield str(below.module)


def _note_imports(source: _Source, node: ast.Import | ast.ImportFrom) -> None:
    for alias in node.names:
        bound = alias.asname or alias.name.partition(".")[0]
        renamed = f" as {alias.asname}" if alias.asname else ""
        if isinstance(node, ast.Import):
            source.outside[bound] = f"import {alias.name}{renamed}"
        elif (node.module or "").startswith(f"{PACKAGE}."):
            source.inside[bound] = (str(node.module), alias.name)
        else:
            source.outside[bound] = f"from {node.module} import {alias.name}{renamed}"
