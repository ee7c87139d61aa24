"""The Python files of a project, and what the names in them refer to."""

from __future__ import annotations

import ast
import re
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypeAlias

Function: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef
Scope: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef

_MARKERS = ("pyproject.toml", "setup.py", "setup.cfg", ".git")
_ROUTERS = {"FastAPI", "APIRouter", "include_router"}
_SKIPPED = {"__pycache__", "node_modules", "site-packages", "venv", "env"}


@dataclass(frozen=True)
class External:
    """A name of a module that is not part of the project, such as `asyncio.create_task`."""

    name: str


@dataclass(frozen=True, eq=False)
class Definition:
    """A function or class of the project, in the scopes around it."""

    module: Module
    node: Function | ast.ClassDef
    scopes: tuple[Scope, ...] = ()


@dataclass(frozen=True, eq=False)
class Instance:
    """A variable that is assigned once, the result of calling a class; the class is of the project or not."""

    of: Definition | External


@dataclass(frozen=True, eq=False)
class Value:
    """A variable of the project that is assigned once, to another expression."""

    module: Module
    node: ast.expr
    scopes: tuple[Scope, ...]


Referent: TypeAlias = "External | Definition | Instance | Value | Module"


@dataclass(eq=False)
class Module:
    """One file that could be parsed."""

    path: Path
    shown: str
    name: str
    source: bytes
    tree: ast.Module

    @cached_property
    def names(self) -> dict[str, list[ast.AST]]:
        return bindings(self.tree)

    @cached_property
    def lines(self) -> list[bytes]:
        return self.source.splitlines(keepends=True)

    @cached_property
    def calls(self) -> list[tuple[ast.Call, tuple[Scope, ...]]]:
        """Every call, with the scopes in which it is evaluated."""
        return [(node, scopes) for node, scopes, _ in walk(self.tree, ()) if isinstance(node, ast.Call)]

    @property
    def package(self) -> str:
        return self.name if self.path.name == "__init__.py" else self.name.rpartition(".")[0]

    @property
    def is_test(self) -> bool:
        stem = self.path.stem
        folders = self.name.split(".")[:-1]
        return stem.startswith("test_") or stem.endswith("_test") or stem == "conftest" or "tests" in folders


@dataclass(eq=False)
class Project:
    """
    The files below one root: those to be changed, and those that are read to find definitions.

    Attributes:
        chosen: The modules that the command was given, in the order of their paths.
        modules: All modules that could be parsed.
        unreadable: Chosen files that could not be read or parsed, and why.
    """

    chosen: list[Module] = field(default_factory=list)
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    _modules: dict[str, Module] = field(default_factory=dict)
    modules: list[Module] = field(default_factory=list)
    _unparsed: list[tuple[str, bytes]] = field(default_factory=list)

    @classmethod
    def read(cls, paths: list[Path]) -> Project:
        project = cls()
        chosen = {file.resolve(): file for path in paths for file in _python_files(path)}
        roots = {_root_of(path.resolve()) for path in paths}
        files = {file.resolve(): root for root in sorted(roots) for file in _python_files(root)}
        for resolved in sorted(files | dict.fromkeys(chosen)):
            root = files.get(resolved) or resolved.parent
            shown = str(chosen.get(resolved, resolved))
            source = b""
            try:
                source = resolved.read_bytes()
                with warnings.catch_warnings(action="ignore"):
                    tree = ast.parse(source, shown)
            except (OSError, SyntaxError, ValueError, RecursionError, MemoryError) as error:
                project._unparsed.append((shown, source))
                if resolved in chosen:
                    line = f"line {error.lineno}: " if isinstance(error, SyntaxError) and error.lineno else ""
                    text = error.msg if isinstance(error, SyntaxError) else str(error) or "it is nested too deeply"
                    project.unreadable.append((shown, f"{line}{text}"))
                continue
            names = _module_names(resolved, root)
            module = Module(resolved, shown, names[0], source, tree)
            project.modules.append(module)
            for name in names:
                project._modules.setdefault(name, module)
            if resolved in chosen:
                project.chosen.append(module)
        return project

    @cached_property
    def dependencies(self) -> set[ast.AST]:
        """The functions that `Depends()` or `Security()` names anywhere in the project."""
        found: set[ast.AST] = set()
        for module in self.modules:
            for call, scopes in module.calls:
                if is_depends(call) and (named := named_by(call)) is not None:
                    target = self.resolve(module, scopes, named)
                    if isinstance(target, Definition):
                        found.add(target.node)
        return found

    @cached_property
    def dependencies_of_routers(self) -> list[Definition]:
        """What `dependencies=[Depends(...)]` of an application or a router names: any endpoint may need it."""
        found: list[Definition] = []
        for module in self.modules:
            for call, scopes in module.calls:
                if last_name(call.func) in _ROUTERS:
                    for part in (part for keyword in call.keywords for part in ast.walk(keyword)):
                        if isinstance(part, ast.Call) and is_depends(part) and (named := named_by(part)) is not None:
                            target = self.resolve(module, scopes, named)
                            if isinstance(target, Definition):
                                found.append(target)
        return found

    @cached_property
    def _calls_by_name(self) -> dict[str, list[tuple[Module, tuple[Scope, ...], ast.Call]]]:
        found: dict[str, list[tuple[Module, tuple[Scope, ...], ast.Call]]] = {}
        for module in self.modules:
            for call, scopes in module.calls:
                found.setdefault(last_name(call.func), []).append((module, scopes, call))
        return found

    def called_at(self, node: Function, *, method: bool) -> str:
        """Return a place where the project itself may call a function, or an empty string."""
        function = node.name
        for module, scopes, call in self._calls_by_name.get(function, ()):
            target = self.resolve(module, scopes, call.func)
            if isinstance(target, External) or (isinstance(target, Definition) and target.node is not node):
                continue
            if target is None and isinstance(call.func, ast.Attribute) and not method:
                continue  # a method of an object
            return f"{module.shown}:{call.lineno}"
        # `schedule(f, x)` calls `f`, as `create_task(f(x))` did before the command has changed it.
        for starter in ("schedule", "add_task"):
            for module, scopes, call in self._calls_by_name.get(starter, ()):
                target = self.resolve(module, scopes, call.args[0]) if call.args else None
                if isinstance(target, Definition) and target.node is node:
                    return f"{module.shown}:{call.lineno}"
        for path, source in self._unparsed:
            if re.search(rb"\b" + re.escape(function.encode()) + rb"\s*\(", source):
                return path
        return ""

    @cached_property
    def started_elsewhere(self) -> dict[str, str]:
        """The functions that something else than an application starts, each with what starts it."""
        found: dict[str, str] = {}
        for starter in ("run", "run_until_complete", "add_job", "add_event_handler"):
            for _, _, call in self._calls_by_name.get(starter, ()):
                for argument in call.args:
                    name = last_name(argument.func if isinstance(argument, ast.Call) else argument)
                    if name:
                        found.setdefault(name, starter)
        return found

    @cached_property
    def functions_by_name(self) -> dict[str, list[Function]]:
        found: dict[str, list[Function]] = {}
        for module in self.modules:
            for node in ast.walk(module.tree):
                if isinstance(node, Function):
                    found.setdefault(node.name, []).append(node)
        return found

    def resolve(self, module: Module, scopes: tuple[Scope, ...], node: ast.expr) -> Referent | None:
        """Return what an expression refers to, or `None` if that is not certain."""
        if isinstance(node, ast.Name):
            return self._resolve_name(module, scopes, node.id)
        if not isinstance(node, ast.Attribute):
            return None
        if isinstance(node.value, ast.Name) and (cls := _class_of_self(scopes, node.value.id)):
            return self._method(Definition(module, *cls), node.attr, set())
        base = self.resolve(module, scopes, node.value)
        match base:
            case External():
                return External(f"{base.name}.{node.attr}")
            case Module():
                return self._member(base, node.attr, set())
            case Definition(node=ast.ClassDef()):
                return self._method(base, node.attr, set())
            case Instance(of=Definition() as cls_):
                return self._method(cls_, node.attr, set())
        return None

    def bases(self, cls: Definition) -> Iterator[Referent | None]:
        if isinstance(cls.node, ast.ClassDef):
            for base in cls.node.bases:
                yield self.resolve(cls.module, cls.scopes, base)

    def inherits(self, cls: Referent | None, names: frozenset[str]) -> bool:
        """Return whether a class is one of the external classes in *names*, or a subclass of one."""
        if isinstance(cls, External):
            return cls.name in names
        return isinstance(cls, Definition) and any(
            base is not cls and self.inherits(base, names) for base in self.bases(cls)
        )

    def _resolve_name(self, module: Module, scopes: tuple[Scope, ...], name: str) -> Referent | None:
        for depth in range(len(scopes), 0, -1):
            scope = scopes[depth - 1]
            # Names of a class body are not visible in its methods.
            if isinstance(scope, ast.ClassDef) and depth != len(scopes):
                continue
            found = bindings(scope).get(name)
            if found is not None:
                return self._bound(module, scopes[:depth], found, name, set())
        return self._member(module, name, set())

    def _member(self, module: Module, name: str, seen: set[tuple[str, str]]) -> Referent | None:
        if (module.name, name) in seen:
            return None
        seen.add((module.name, name))
        found = module.names.get(name)
        if found is not None:
            return self._bound(module, (), found, name, seen)
        return self._modules.get(f"{module.name}.{name}") if module.path.name == "__init__.py" else None

    def _bound(
        self, module: Module, scopes: tuple[Scope, ...], nodes: list[ast.AST], name: str, seen: set[tuple[str, str]]
    ) -> Referent | None:
        if len(nodes) > 1 and not all(isinstance(node, ast.Import) for node in nodes):
            return None  # bound more than once: which one holds is known at run time only
        match nodes[0]:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef() as node:
                return Definition(module, node, scopes)
            case ast.Import():
                # `import a.b` and `import a.c` bind the same `a`, unlike `import a as name` and `import b as name`.
                aliases = [alias for node in nodes if isinstance(node, ast.Import) for alias in node.names]
                imported = {
                    alias.name if alias.asname else name
                    for alias in aliases
                    if (alias.asname or alias.name.split(".")[0]) == name
                }
                return self._import(*imported) if len(imported) == 1 else None
            case ast.ImportFrom() as node:
                source = _imported_module(module, node)
                original = next(alias.name for alias in node.names if (alias.asname or alias.name) == name)
                target = self._modules.get(source)
                if target is None:
                    return self._modules.get(f"{source}.{original}") or External(f"{source}.{original}")
                return self._member(target, original, seen)
            case (
                ast.Assign(targets=[ast.Name()], value=value)
                | ast.AnnAssign(target=ast.Name(), value=ast.expr() as value)
            ):
                if isinstance(value, ast.Call):
                    cls = self.resolve(module, scopes, value.func)
                    if isinstance(cls, External) or (
                        isinstance(cls, Definition) and isinstance(cls.node, ast.ClassDef)
                    ):
                        return Instance(cls)
                return Value(module, value, scopes)
            case node if sys.version_info >= (3, 12) and isinstance(node, ast.TypeAlias):
                return Value(module, node.value, scopes)
        return None

    def _import(self, name: str) -> Referent:
        return self._modules.get(name) or External(name)

    def _method(self, cls: Definition, name: str, seen: set[ast.AST]) -> Referent | None:
        if cls.node in seen:
            return None
        seen.add(cls.node)
        found = bindings(cls.node).get(name)
        if found is not None:
            return self._bound(cls.module, (*cls.scopes, cls.node), found, name, set())
        for base in self.bases(cls):
            if not isinstance(base, Definition):
                return None  # a class that the project does not hold may define it
            method = self._method(base, name, seen)
            if method is not None:
                return method
        return None


_bindings: dict[int, tuple[ast.AST, dict[str, list[ast.AST]]]] = {}


def bindings(scope: ast.AST) -> dict[str, list[ast.AST]]:
    """Return the names that a scope binds, each with the nodes that bind it."""
    cached = _bindings.get(id(scope))
    if cached is not None:
        return cached[1]
    found: dict[str, list[ast.AST]] = {}
    if isinstance(scope, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        for parameter in parameters(scope):
            found.setdefault(parameter.arg, []).append(parameter)
    body = scope.body if isinstance(scope.body, list) else [scope.body]  # type: ignore[attr-defined]
    outer: set[str] = set()
    for node in body:
        _bind(node, None, found, outer)
    if isinstance(scope, ast.Module):
        # `global name` in a function rebinds the name at a time that is not known.
        for node in ast.walk(scope):
            if isinstance(node, ast.Global):
                for name in node.names:
                    found.setdefault(name, []).extend([node, node])
    else:
        for name in outer:
            found.pop(name, None)
    _bindings[id(scope)] = (scope, found)
    return found


def _bind(node: ast.AST, statement: ast.AST | None, found: dict[str, list[ast.AST]], outer: set[str]) -> None:
    match node:
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
            found.setdefault(node.name, []).append(node)
            return
        case ast.Lambda():
            return
        case ast.Import() | ast.ImportFrom():
            for alias in node.names:
                name = alias.asname or (alias.name.split(".")[0] if isinstance(node, ast.Import) else alias.name)
                found.setdefault(name, []).append(node)
            return
        case ast.Global() | ast.Nonlocal():
            outer.update(node.names)
        case ast.Name(ctx=ast.Store() | ast.Del()):
            found.setdefault(node.id, []).append(statement if statement is not None else node)
        case (
            ast.ExceptHandler(name=str() as name) | ast.MatchAs(name=str() as name) | ast.MatchStar(name=str() as name)
        ):
            found.setdefault(name, []).append(node)
    # The last one is `type X = ...`, which came with Python 3.12.
    simple = isinstance(node, (ast.Assign, ast.AnnAssign, getattr(ast, "TypeAlias", ast.Assign)))
    for child in ast.iter_child_nodes(node):
        _bind(child, node if simple else None, found, outer)


def parameters(node: Function | ast.Lambda) -> list[ast.arg]:
    arguments = node.args
    extra = [argument for argument in (arguments.vararg, arguments.kwarg) if argument is not None]
    return [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, *extra]


def walk(
    node: ast.AST, scopes: tuple[Scope, ...], parents: tuple[ast.AST, ...] = ()
) -> Iterator[tuple[ast.AST, tuple[Scope, ...], tuple[ast.AST, ...]]]:
    """Yield each node with the scopes in which it is evaluated, and with its parents, the nearest last."""
    waiting = [(node, scopes, parents)]
    while waiting:
        node, scopes, parents = waiting.pop()
        yield node, scopes, parents
        below = (*parents, node)
        children = list(ast.iter_child_nodes(node))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            # Decorators, defaults and annotations are evaluated outside of the function.
            body = {id(child) for child in (node.body if isinstance(node.body, list) else [node.body])}
            inner = (*scopes, node)
            waiting.extend((child, inner if id(child) in body else scopes, below) for child in reversed(children))
        else:
            waiting.extend((child, scopes, below) for child in reversed(children))


def last_name(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def is_depends(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and last_name(node.func) in ("Depends", "Security")


def named_by(depends: ast.Call) -> ast.expr | None:
    """Return what a `Depends(...)` names; without it, FastAPI calls the class in the annotation of the parameter."""
    keywords = (keyword.value for keyword in depends.keywords if keyword.arg == "dependency")
    return depends.args[0] if depends.args else next(keywords, None)


def _class_of_self(scopes: tuple[Scope, ...], name: str) -> tuple[ast.ClassDef, tuple[Scope, ...]] | None:
    """Return the class whose method calls its instance or itself *name*, and the scopes around the class."""
    for depth in range(len(scopes) - 1, -1, -1):
        scope = scopes[depth]
        if isinstance(scope, ast.ClassDef) or name not in bindings(scope):
            continue
        outer = scopes[depth - 1] if depth else None
        if not isinstance(scope, ast.Lambda) and isinstance(outer, ast.ClassDef):
            static = any(last_name(decorator) == "staticmethod" for decorator in scope.decorator_list)
            first = [*scope.args.posonlyargs, *scope.args.args][:1]
            if first and first[0].arg == name and not static and len(bindings(scope)[name]) == 1:
                return outer, scopes[: depth - 1]
        return None
    return None


def _imported_module(module: Module, node: ast.ImportFrom) -> str:
    if not node.level:
        return node.module or ""
    parts = module.package.split(".")
    parts = parts[: len(parts) - node.level + 1]
    return ".".join([*parts, *([node.module] if node.module else [])])


def _python_files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
        return
    if (path / "pyvenv.cfg").exists():
        return
    for child in sorted(path.iterdir()):
        if child.is_symlink():
            continue
        if child.is_dir():
            if not child.name.startswith(".") and child.name not in _SKIPPED:
                yield from _python_files(child)
        elif child.suffix == ".py":
            yield child


def _root_of(path: Path) -> Path:
    """Return the folder whose files are read to find definitions: the project around *path*, or its package."""
    folder = path if path.is_dir() else path.parent
    for candidate in (folder, *folder.parents):
        if any((candidate / marker).exists() for marker in _MARKERS):
            return candidate
    while (folder / "__init__.py").exists() and folder.parent != folder:
        folder = folder.parent
    return folder


def _module_names(path: Path, root: Path) -> list[str]:
    """Return the names under which a file may be imported: from its package, from the root, from `src`."""
    top = path.parent
    while (top / "__init__.py").exists() and top.parent != top:
        top = top.parent
    names: list[str] = []
    for base in (top, root, root / "src"):
        if path.is_relative_to(base):
            parts = list(path.relative_to(base).with_suffix("").parts)
            if parts[-1] == "__init__" and len(parts) > 1:
                parts.pop()
            name = ".".join(parts)
            if name not in names:
                names.append(name)
    return names
