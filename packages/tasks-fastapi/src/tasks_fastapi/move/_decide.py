"""Which calls become tasks, and why the others are left."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal, TypeAlias

from ._project import (
    Definition,
    External,
    Function,
    Instance,
    Module,
    Project,
    Referent,
    Scope,
    Value,
    bindings,
    is_depends,
    last_name,
    named_by,
    parameters,
    walk,
)

Place: TypeAlias = tuple[int, int]
Assumption = Literal["order", "values"]

ASSUMPTIONS: dict[Assumption, str] = {
    "order": "the tasks of one request may run at the same time, in any order",
    "values": "no task uses what a dependency closes, such as a session or an uploaded file",
}

_CREATE = {"asyncio.create_task", "asyncio.ensure_future"}
_BACKGROUND_TASKS = frozenset(
    ("fastapi.BackgroundTasks", "fastapi.background.BackgroundTasks", "starlette.background.BackgroundTasks")
)
_BACKGROUND_TASK = {"starlette.background.BackgroundTask", "fastapi.background.BackgroundTask"}
_ROUTERS = frozenset(
    ("fastapi.FastAPI", "fastapi.applications.FastAPI", "fastapi.APIRouter", "fastapi.routing.APIRouter")
)
_ROUTES = {"get", "post", "put", "patch", "delete", "head", "options", "trace", "api_route", "websocket"}
_PLAIN_RESPONSES = {
    "JSONResponse",
    "ORJSONResponse",
    "UJSONResponse",
    "HTMLResponse",
    "PlainTextResponse",
    "RedirectResponse",
    "Response",
}
_STREAMS = {"FileResponse", "StreamingResponse", "EventSourceResponse"}
_OF_THE_REQUEST = {"UploadFile", "Request", "WebSocket", "HTTPConnection"}
_VALUE_TYPES = {
    *("str", "bytes", "int", "float", "bool", "Decimal", "UUID", "UUID4", "EmailStr"),
    *("datetime", "date", "time", "timedelta"),
}
_VALUE_COLUMNS = {
    *("String", "Text", "Unicode", "Integer", "BigInteger", "SmallInteger", "Float", "Numeric", "Boolean", "Uuid"),
    *("DateTime", "Date", "Time", "LargeBinary"),
}
_TO_VALUES = {"str", "int", "float", "bool", "len", "repr"}
_LIFESPAN = {"asynccontextmanager", "on_event", "lifespan"}
_RETURN_THE_FUNCTION = {
    "staticmethod",
    "classmethod",
    "typing.override",
    "typing_extensions.override",
    "abc.abstractmethod",
}


@dataclass(frozen=True)
class Report:
    """One call site: `moved` says what it has become, or `left` says why it is as it was."""

    line: int
    kind: str
    moved: str = ""
    left: str = ""


@dataclass(frozen=True)
class ScheduleCoroutine:
    """`create_task(f(x))` becomes `TARGET.schedule(f, x)`."""

    target: str


@dataclass(frozen=True)
class ScheduleFunction:
    """`background_tasks.add_task(f, x)` becomes `TARGET(f, x)`."""

    target: str


@dataclass(frozen=True)
class ScheduleBeforeReturn:
    """`return R(background=BackgroundTask(f, x))` becomes `TARGET(f, x)` and `return R()`."""

    target: str


@dataclass(frozen=True)
class AddParameter:
    """A function gets the parameter `tasks: Tasks`."""


@dataclass(frozen=True)
class ReplaceParameter:
    """A parameter of a function becomes `tasks: Tasks`."""

    old: str
    new: str


Edit: TypeAlias = ScheduleCoroutine | ScheduleFunction | ScheduleBeforeReturn | AddParameter | ReplaceParameter


@dataclass
class Plan:
    """What happens to one file."""

    module: Module
    reports: list[Report] = field(default_factory=list)
    edits: dict[tuple[Place, type[Edit]], Edit] = field(default_factory=dict)
    imports: set[str] = field(default_factory=set)
    unused: set[tuple[str, str | None, str | None]] = field(default_factory=set)
    """Imports (module, name, alias) to be removed if nothing uses them."""

    def edit(self, node: ast.expr | ast.stmt, edit: Edit) -> None:
        self.edits[place(self.module, node), type(edit)] = edit

    def leave(self, node: ast.expr | ast.stmt, kind: str, reason: str) -> None:
        self.reports.append(Report(node.lineno, kind, left=reason))

    def move(self, node: ast.expr | ast.stmt, kind: str, text: str) -> None:
        self.reports.append(Report(node.lineno, kind, moved=text))


def place(module: Module, node: ast.expr | ast.stmt) -> Place:
    """Return line and column of a node, in characters; `ast` counts the columns in bytes."""
    line = module.lines[node.lineno - 1]
    return node.lineno, len(line[: node.col_offset].decode("utf-8", "replace"))


def decide(project: Project, module: Module, assume: Sequence[Assumption] = ()) -> Plan:
    """Return the plan for one module."""
    plan = Plan(module)
    _Decisions(project, module, frozenset(assume), plan).run()
    plan.reports.sort(key=lambda report: report.line)
    return plan


@dataclass
class _Decisions:
    project: Project
    module: Module
    assume: frozenset[Assumption]
    plan: Plan
    names: dict[ast.AST, str] = field(default_factory=dict)
    """The parameter that holds the tasks, of each function whose BackgroundTasks parameter is replaced."""

    def run(self) -> None:
        added: dict[ast.AST, list[tuple[ast.Call, tuple[ast.AST, ...]]]] = {}
        nodes = list(walk(self.module.tree, ()))
        for node, scopes, parents in nodes:
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "add_task":
                owner = self._owner(node.func.value, scopes, self._annotates_background_tasks)
                if owner is not None:
                    added.setdefault(owner, []).append((node, parents))
                elif self._owner(node.func.value, scopes, self._is_tasks) is None:
                    self._unknown_add_task(node, node.func.value, scopes)
        # Parameters that become `tasks: Tasks` come first, because the other calls of the function use them.
        for node, scopes, _ in nodes:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node in added:
                self._add_tasks(node, scopes, added[node])
        for node, scopes, parents in nodes:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                self._periodic(node)
            elif not isinstance(node, ast.Call):
                continue
            elif self._is_create_task(node, scopes):
                self._create_task(node, scopes, parents)
            elif _external(self.project.resolve(self.module, scopes, node.func)) in _BACKGROUND_TASK:
                self._background_task(node, scopes, parents)

    # asyncio.create_task

    def _is_create_task(self, call: ast.Call, scopes: tuple[Scope, ...]) -> bool:
        if last_name(call.func) not in ("create_task", "ensure_future"):
            return False
        if isinstance(call.func, ast.Attribute) and "loop" in ast.unparse(call.func.value):
            return True
        return _external(self.project.resolve(self.module, scopes, call.func)) in _CREATE

    def _create_task(self, call: ast.Call, scopes: tuple[Scope, ...], parents: tuple[ast.AST, ...]) -> None:
        kind = last_name(call.func)
        if reason := self._why_not_create(call, scopes, parents):
            self.plan.leave(call, kind, reason)
            return
        function = scopes[-1]
        assert isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        name = next((keyword.value for keyword in call.keywords), None)
        target = self._parameter(function, scopes)
        if target is None:
            if reason := self._why_not_current(function, scopes, parents):
                self.plan.leave(call, kind, reason)
                return
            target = "current_tasks()"
            self.plan.imports.add("current_tasks")
        self.plan.edit(call, ScheduleCoroutine(target))
        inner = call.args[0]
        assert isinstance(inner, ast.Call)
        middle = "" if name is None else ".task(name=...)"
        self.plan.move(call, kind, f"{target}{middle}.schedule({ast.unparse(inner.func)}, ...)")
        self._forget(call.func)

    def _why_not_create(self, call: ast.Call, scopes: tuple[Scope, ...], parents: tuple[ast.AST, ...]) -> str:
        if _external(self.project.resolve(self.module, scopes, call.func)) not in _CREATE:
            assert isinstance(call.func, ast.Attribute)
            return f"{ast.unparse(call.func.value)} is an event loop that is known at run time only"
        if not isinstance(parents[-1], ast.Expr):
            if (
                call.args
                and isinstance(call.args[0], ast.Call)
                and _LIFESPAN & {name for _, name in _decorators(scopes)}
            ):
                text = ast.unparse(call.args[0].func)
                return (
                    f"it is in a lifespan and its result is used: if {text} runs as long as the application, "
                    f"write get_scheduler(app).service({text}, ...), which is cancelled at shutdown"
                )
            return "its result is used, and a Task has other methods than asyncio.Task"
        if len(call.args) != 1 or not isinstance(call.args[0], ast.Call):
            return "its argument is not a call such as f(x), so the function is not known here"
        inner = call.args[0]
        if len(call.keywords) > 1 or any(
            keyword.arg != "name" or not _is_text(keyword.value) for keyword in call.keywords
        ):
            return 'it has options other than name="text"'
        if self.module.is_test:
            return "this is a test, which no application runs"
        if not scopes or not isinstance(scopes[-1], ast.FunctionDef | ast.AsyncFunctionDef):
            return "it is not in a function"
        if isinstance(scopes[-1], ast.FunctionDef) and self._is_injected(scopes[-1], scopes[:-1]):
            return f"{scopes[-1].name} is a plain `def`, in whose thread asyncio.create_task always fails"
        if _catches(parents, {"RuntimeError"}, silent=False):
            return "the `except RuntimeError` around it would catch the errors of schedule() as well"
        return self._why_no_coroutine_function(inner, scopes)

    def _why_no_coroutine_function(self, inner: ast.Call, scopes: tuple[Scope, ...]) -> str:
        """Return why the function that is called may not be an `async def`: a plain function would run in a thread."""
        text = ast.unparse(inner.func)
        if any(isinstance(argument, ast.GeneratorExp) for argument in inner.args):
            return "its argument is a generator expression"
        target = self.project.resolve(self.module, scopes, inner.func)
        if not isinstance(target, Definition) or not isinstance(target.node, ast.FunctionDef | ast.AsyncFunctionDef):
            return f"the project does not show that {text} is an `async def`"
        function = target.node
        if isinstance(function, ast.FunctionDef):
            return f"{text} is a plain `def`, which a task would run in a thread"
        if _yields(function):
            return f"{text} is an asynchronous generator"
        for decorator in function.decorator_list:
            if not self._keeps_coroutine_function(target, decorator):
                return (
                    f"{text} is decorated with @{ast.unparse(decorator).split('(')[0]}, which may return something else"
                )
        if target.scopes and isinstance(target.scopes[-1], ast.ClassDef):
            same = self.project.functions_by_name.get(function.name, [])
            if not all(isinstance(other, ast.AsyncFunctionDef) for other in same):
                return f"{text} may be overridden by a plain `def {function.name}` of the project"
        if _never_ends(function):
            return (
                f"{text} may run as long as the application: if so, start it in the lifespan with "
                f"get_scheduler(app).service({text}, ...)"
            )
        return ""

    def _keeps_coroutine_function(self, target: Definition, decorator: ast.expr) -> bool:
        if last_name(decorator) in _RETURN_THE_FUNCTION:
            return True
        node = decorator.func if isinstance(decorator, ast.Call) else decorator
        referent = self.project.resolve(target.module, target.scopes, node)
        if _external(referent) in _RETURN_THE_FUNCTION or self._is_route(target.module, target.scopes, decorator):
            return True
        return (
            not isinstance(decorator, ast.Call)
            and isinstance(referent, Definition)
            and isinstance(referent.node, ast.FunctionDef)
            and not referent.node.decorator_list
            and _returns_coroutine_function(referent.node)
        )

    def _why_not_current(self, function: Function, scopes: tuple[Scope, ...], parents: tuple[ast.AST, ...]) -> str:
        """Return why `current_tasks()` may not work where the function is called."""
        for scope, name in _decorators(scopes):
            if name in _LIFESPAN:
                return "it is in a lifespan, where a task starts only when startup is complete"
            if name in ("scheduled_job", "repeat_every"):
                return f"{scope.name} is started by @{name}: use get_scheduler(app).periodic(...) for it first"
        if function.name in self.project.started_elsewhere:
            starter = self.project.started_elsewhere[function.name]
            return f"{function.name} is started by {starter}(), outside of the tasks of an application"
        if _catches(parents, {"RuntimeError", "Exception", "BaseException"}, silent=True):
            return "the `except` around it would hide that current_tasks() found no application"
        taken = {"current_tasks"} & (self.module.names.keys() | set().union(*(bindings(scope) for scope in scopes)))
        if taken and not self._imports_ours("current_tasks"):
            return "the name current_tasks has another meaning here"
        return ""

    # The parameter tasks: Tasks

    def _parameter(self, function: Function, scopes: tuple[Scope, ...]) -> str | None:
        """Return the name of the parameter that holds the tasks, adding one if that is safe; otherwise `None`."""
        if function in self.names:
            return self.names[function]
        for parameter in parameters(function):
            if self._is_tasks(parameter, scopes[:-1]):
                return parameter.arg
        if not self._is_injected(function, scopes[:-1]) or self._called_at(function, scopes[:-1]):
            return None
        if "Tasks" in self.module.names and not self._imports_ours("Tasks"):
            return None
        if _mentions(function, "tasks") or function.args.posonlyargs or function.args.vararg:
            return None
        self.plan.edit(function, AddParameter())
        self.plan.imports.add("Tasks")
        return "tasks"

    def _is_tasks(self, parameter: ast.arg, scopes: tuple[Scope, ...]) -> bool:
        if parameter.annotation is None:
            return False
        referent = self.project.resolve(self.module, scopes, parameter.annotation)
        return _external(referent) in ("tasks_fastapi.Tasks", "tasks_fastapi.RequestTasks")

    def _imports_ours(self, name: str) -> bool:
        return _external(self.project.resolve(self.module, (), ast.Name(name))) == f"tasks_fastapi.{name}"

    def _is_injected(self, function: Function, outer: tuple[Scope, ...]) -> bool:
        """Return whether FastAPI calls the function, as an endpoint or a dependency."""
        return function in self.project.dependencies or any(
            self._is_route(self.module, outer, decorator) for decorator in function.decorator_list
        )

    def _is_route(self, module: Module, scopes: tuple[Scope, ...], decorator: ast.expr) -> bool:
        if not isinstance(decorator, ast.Call) or not isinstance(decorator.func, ast.Attribute):
            return False
        if decorator.func.attr not in _ROUTES:
            return False
        router = self.project.resolve(module, scopes, decorator.func.value)
        return isinstance(router, Instance) and self.project.inherits(router.of, _ROUTERS)

    def _called_at(self, function: Function, outer: tuple[Scope, ...]) -> str:
        return self.project.called_at(function, method=bool(outer) and isinstance(outer[-1], ast.ClassDef))

    # BackgroundTasks.add_task

    def _unknown_add_task(self, call: ast.Call, receiver: ast.expr, scopes: tuple[Scope, ...]) -> None:
        text = ast.unparse(receiver)
        if self._is_background_tasks(receiver, scopes):
            self.plan.leave(call, "add_task", f"{text} is made by hand, and is for one response")
        elif b"BackgroundTasks" in self.module.source:
            self.plan.leave(call, "add_task", f"the project does not show that {text} is a BackgroundTasks object")

    def _owner(
        self, node: ast.expr, scopes: tuple[Scope, ...], fits: Callable[[ast.arg, tuple[Scope, ...]], bool]
    ) -> Function | None:
        """Return the function whose parameter the name is, if the parameter fits."""
        if not isinstance(node, ast.Name):
            return None
        for depth in range(len(scopes), 0, -1):
            scope = scopes[depth - 1]
            if isinstance(scope, ast.FunctionDef | ast.AsyncFunctionDef) and node.id in bindings(scope):
                for parameter in parameters(scope):
                    if parameter.arg == node.id and fits(parameter, scopes[: depth - 1]):
                        return scope
                return None
        return None

    def _annotates_background_tasks(self, parameter: ast.arg, scopes: tuple[Scope, ...]) -> bool:
        if parameter.annotation is None:
            return False
        return any(
            isinstance(node, ast.Name | ast.Attribute)
            and _external(self.project.resolve(self.module, scopes, node)) in _BACKGROUND_TASKS
            for node in ast.walk(parameter.annotation)
        )

    def _is_background_tasks(self, node: ast.expr, scopes: tuple[Scope, ...]) -> bool:
        referent = self.project.resolve(self.module, scopes, node)
        return isinstance(referent, Instance) and self.project.inherits(referent.of, _BACKGROUND_TASKS)

    def _add_tasks(
        self, function: Function, scopes: tuple[Scope, ...], found: list[tuple[ast.Call, tuple[ast.AST, ...]]]
    ) -> None:
        receiver = found[0][0].func
        assert isinstance(receiver, ast.Attribute)
        assert isinstance(receiver.value, ast.Name)
        old = receiver.value.id
        parameter = next(parameter for parameter in parameters(function) if parameter.arg == old)
        reason = self._why_not_add(function, scopes, found, old)
        if reason:
            for call, _ in found:
                self.plan.leave(call, "add_task", reason)
            return
        new = old if _mentions(function, "tasks") else "tasks"
        self.names[function] = new
        self.plan.edit(function, ReplaceParameter(old, new))
        self.plan.imports.add("Tasks")
        for call, _ in found:
            target = f"{new}.add_task"
            self.plan.edit(call, ScheduleFunction(target))
            self.plan.move(call, "add_task", f"{target}({ast.unparse(call.args[0])}, ...)")
        assert parameter.annotation is not None
        self._forget(parameter.annotation)

    def _why_not_add(
        self,
        function: Function,
        scopes: tuple[Scope, ...],
        found: list[tuple[ast.Call, tuple[ast.AST, ...]]],
        name: str,
    ) -> str:
        if not self._is_injected(function, scopes):
            return f"{function.name} is neither an endpoint nor a dependency: its caller passes {name}"
        parameter, default = next(pair for pair in _with_defaults(function) if pair[0].arg == name)
        if default is not None or not isinstance(parameter.annotation, ast.Name | ast.Attribute):
            return f"{name} may be something else than a BackgroundTasks object"
        if caller := self._called_at(function, scopes):
            return f"{function.name} is called directly, at {caller}"
        for call, parents in found:
            if not isinstance(parents[-1], ast.Expr):
                return "the result of add_task is used"
            if not call.args or isinstance(call.args[0], ast.Starred) or any(k.arg == "func" for k in call.keywords):
                return "its function is not the first argument"
        uses = sum(isinstance(node, ast.Name) and node.id == name for node in ast.walk(function))
        if uses != len(found):
            return f"{name} is used for more than add_task"
        if any(_nearest_function(parents) is not function for _, parents in found):
            return "it is in a function inside of the endpoint, which may run at another time"
        if function.args.posonlyargs:
            return f"{function.name} has positional-only parameters"
        if "Tasks" in self.module.names and not self._imports_ours("Tasks"):
            return "the name Tasks has another meaning in this file"
        if any(isinstance(d, ast.Call) and last_name(d.func) == "websocket" for d in function.decorator_list):
            return "BackgroundTasks of a WebSocket never run, and a task would"
        if self._sets_background(Definition(self.module, function, scopes), set()):
            return "its response may have a background of its own, which replaces the BackgroundTasks"
        if function in self.project.dependencies and (endpoint := self._endpoint_with_background(function)):
            return f"the response of {endpoint} may have a background of its own, which replaces the BackgroundTasks"
        facts = self._dependency_facts(function, scopes, set())
        if "order" not in self.assume:
            if _most(function.body, {id(call) for call, _ in found}) > 1:
                return "several tasks run one after the other, and would run at the same time (--assume order)"
            if function in self.project.dependencies:
                return (
                    "the endpoint may add tasks that run after it, and they would run at the same time (--assume order)"
                )
            if facts.add_tasks:
                return (
                    "a dependency adds tasks that run before it, and they would run at the same time (--assume order)"
                )
        if "values" not in self.assume:
            for call, _ in found:
                if reason := self._why_closed(call, function, scopes):
                    return reason
        return ""

    def _endpoint_with_background(self, dependency: Function) -> str:
        """Return the name of an endpoint that needs the dependency, and whose response may get a background."""
        for module in self.project.modules:
            there = _Decisions(self.project, module, self.assume, self.plan)
            for node, scopes, _ in walk(module.tree, ()):
                if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    continue
                needed: set[ast.AST] = set()
                there._dependency_facts(node, scopes, needed)
                if dependency in needed and self._sets_background(Definition(module, node, scopes), set()):
                    return node.name
        return ""

    def _sets_background(self, target: Definition, seen: set[ast.AST]) -> bool:
        """Return whether a response may get a background in a function, or in what the function calls or passes on."""
        if target.node in seen:
            return False
        seen.add(target.node)
        for node, scopes, _ in walk(target.node, target.scopes):
            used: list[ast.expr] = []
            match node:
                case ast.keyword(arg="background", value=value) if not isinstance(value, ast.Constant):
                    return True
                case ast.Attribute(attr="background", ctx=ast.Store()):
                    return True
                case ast.Call():
                    used = [node.func, *node.args]
                case ast.FunctionDef() | ast.AsyncFunctionDef():
                    used = node.decorator_list
            for expression in used:
                referent = self.project.resolve(target.module, scopes, expression)
                if _external(referent) in _BACKGROUND_TASK | _BACKGROUND_TASKS:
                    return True
                if isinstance(referent, Definition) and self._sets_background(referent, seen):
                    return True
        return False

    def _why_closed(self, call: ast.Call, function: Function, scopes: tuple[Scope, ...]) -> str:
        """Return why an argument may need what is closed after the response: dependencies with `yield`, uploads."""
        values = self._value_attributes(function, scopes)
        closed = self._closed_names(function, scopes, values)
        for argument in [*call.args, *(keyword.value for keyword in call.keywords)]:
            for name in _names_used(argument, values):
                if name in closed:
                    text = ast.unparse(argument)
                    return f"{text} may use {closed[name]}, which is closed when the task runs (--assume values)"
        return ""

    def _value_attributes(self, function: Function, scopes: tuple[Scope, ...]) -> set[ast.AST]:
        """Return the attributes of parameters that their classes declare as text, numbers and the like."""
        found: set[ast.AST] = set()
        for parameter in parameters(function):
            if len(bindings(function)[parameter.arg]) > 1:
                continue
            cls = self._class_of(parameter, scopes)
            if cls is None:
                continue
            for node in ast.walk(function):
                match node:
                    case ast.Attribute(value=ast.Name(id=name), attr=attribute) if name == parameter.arg:
                        if self._declares_value(cls, attribute):
                            found.add(node)
        return found

    def _class_of(self, parameter: ast.arg, scopes: tuple[Scope, ...]) -> Definition | None:
        cls: Referent | None = None
        for node, module, inner in self._aliases(parameter, scopes):
            cls = self.project.resolve(module, inner, node)
        return cls if isinstance(cls, Definition) and isinstance(cls.node, ast.ClassDef) else None

    def _aliases(
        self, parameter: ast.arg, scopes: tuple[Scope, ...]
    ) -> Iterator[tuple[ast.expr, Module, tuple[Scope, ...]]]:
        """Yield the annotation of a parameter, and all that it is another name of, each where it is written."""
        module, node = self.module, parameter.annotation
        seen: set[ast.expr] = set()
        while node is not None and node not in seen:
            seen.add(node)
            yield node, module, scopes
            match node:
                case ast.Subscript(value=outer, slice=ast.Tuple(elts=[first, *_])) if last_name(outer) == "Annotated":
                    node = first
                case _:
                    referent = self.project.resolve(module, scopes, node)
                    if not isinstance(referent, Value):
                        return
                    module, node, scopes = referent.module, referent.node, referent.scopes

    def _declares_value(self, cls: Definition, attribute: str) -> bool:
        declared = bindings(cls.node).get(attribute)
        if declared is None:
            bases = [
                base for base in self.project.bases(cls) if isinstance(base, Definition) and base.node is not cls.node
            ]
            return any(self._declares_value(base, attribute) for base in bases)
        match declared:
            case [ast.AnnAssign(annotation=annotation)]:
                return self._is_value_type(cls, annotation)
            case [ast.Assign(value=ast.Call(func=column, args=[kind, *_]))] if last_name(column) == "Column":
                return last_name(kind.func if isinstance(kind, ast.Call) else kind) in _VALUE_COLUMNS
        return False

    def _is_value_type(self, cls: Definition, annotation: ast.expr) -> bool:
        """Return whether an annotation such as `Mapped[str | None]` allows for nothing but values."""
        match annotation:
            case ast.Constant(value=None):
                return True
            case ast.BinOp(left=left, right=right):
                return self._is_value_type(cls, left) and self._is_value_type(cls, right)
            case ast.Subscript(value=outer, slice=inner) if last_name(outer) in ("Mapped", "Optional"):
                return self._is_value_type(cls, inner)
            case ast.Name() | ast.Attribute():
                own = self.project.resolve(cls.module, cls.scopes, annotation)
                return last_name(annotation) in _VALUE_TYPES and not isinstance(own, Definition | Value | Module)
        return False

    def _closed_names(self, function: Function, scopes: tuple[Scope, ...], values: set[ast.AST]) -> dict[str, str]:
        """Return the names that hold, or may be made from, what is closed when the response has been sent."""
        closed: dict[str, str] = {}
        for parameter, default in _with_defaults(function):
            if self._is_closed(parameter, default, function, scopes):
                closed[parameter.arg] = parameter.arg
        changed = bool(closed)
        while changed:
            changed = False
            for node in ast.walk(function):
                for targets, value in _assignments(node):
                    source = next((closed[name] for name in _names_used(value, values) if name in closed), None)
                    if source is None:
                        continue
                    for target in targets:
                        for name in ast.walk(target):
                            if isinstance(name, ast.Name) and name.id not in closed:
                                closed[name.id] = source
                                changed = True
        return closed

    def _is_closed(
        self, parameter: ast.arg, default: ast.expr | None, function: Function, scopes: tuple[Scope, ...]
    ) -> bool:
        if parameter.arg in ("self", "cls"):
            return True
        if parameter.annotation is not None:
            for node in ast.walk(parameter.annotation):
                if isinstance(node, ast.Name | ast.Attribute) and last_name(node) in _OF_THE_REQUEST:
                    return True
                if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in _OF_THE_REQUEST:
                    return True
        marker = self._marker(parameter, default, scopes)
        if marker is None:
            return False
        target = self._dependency_of(parameter, marker, scopes)
        if target is None:
            return True
        return self._facts_of(target, set()).closes

    def _marker(
        self, parameter: ast.arg, default: ast.expr | None, scopes: tuple[Scope, ...]
    ) -> tuple[ast.Call, Module, tuple[Scope, ...]] | None:
        """Return the `Depends(...)` of a parameter, with the module that it is written in."""
        if default is not None and is_depends(default):
            assert isinstance(default, ast.Call)
            return default, self.module, scopes
        for node, module, inner in self._aliases(parameter, scopes):
            for part in ast.walk(node):
                if isinstance(part, ast.Call) and is_depends(part):
                    return part, module, inner
        return None

    def _dependency_of(
        self, parameter: ast.arg, marker: tuple[ast.Call, Module, tuple[Scope, ...]], scopes: tuple[Scope, ...]
    ) -> Definition | None:
        call, module, inner = marker
        named = named_by(call)
        if named is None:
            return self._class_of(parameter, scopes)
        found = self.project.resolve(module, inner, named)
        return found if isinstance(found, Definition) else None

    def _dependency_facts(self, function: Function, scopes: tuple[Scope, ...], seen: set[ast.AST]) -> _Facts:
        closes = adds = False
        targets = [
            self._dependency_of(parameter, marker, scopes)
            for parameter, default in _with_defaults(function)
            if (marker := self._marker(parameter, default, scopes)) is not None
        ]
        for decorator in function.decorator_list:
            for part in ast.walk(decorator):
                if isinstance(part, ast.Call) and is_depends(part) and (named := named_by(part)) is not None:
                    found = self.project.resolve(self.module, scopes, named)
                    targets.append(found if isinstance(found, Definition) else None)
        if any(self._is_route(self.module, scopes, decorator) for decorator in function.decorator_list):
            targets.extend(self.project.dependencies_of_routers)
        for target in targets:
            facts = _Facts(True, False) if target is None else self._facts_of(target, seen)
            closes, adds = closes or facts.closes, adds or facts.add_tasks
        return _Facts(closes, adds)

    def _facts_of(self, target: Definition, seen: set[ast.AST]) -> _Facts:
        """Return what a dependency does, with those that it depends on."""
        node: Function | None
        if isinstance(target.node, ast.ClassDef):
            init = bindings(target.node).get("__init__", [])
            node = init[0] if len(init) == 1 and isinstance(init[0], ast.FunctionDef) else None
            if node is None:
                return _Facts(bool(target.node.bases or target.node.decorator_list), False)
            inner: tuple[Scope, ...] = (*target.scopes, target.node)
        else:
            node, inner = target.node, target.scopes
        if node in seen:
            return _Facts(False, False)
        seen.add(node)
        there = _Decisions(self.project, target.module, self.assume, self.plan)
        below = there._dependency_facts(node, inner, seen)
        adds = any(there._annotates_background_tasks(parameter, inner) for parameter in parameters(node))
        for parameter in parameters(node):
            if parameter.annotation is not None and any(
                isinstance(part, ast.Name) and part.id in _OF_THE_REQUEST for part in ast.walk(parameter.annotation)
            ):
                below = _Facts(True, below.add_tasks)
        return _Facts(below.closes or _yields(node), below.add_tasks or adds)

    # BackgroundTask of a response

    def _background_task(self, call: ast.Call, scopes: tuple[Scope, ...], parents: tuple[ast.AST, ...]) -> None:
        name = ""
        reason = self._why_not_background(call, scopes, parents)
        if not reason:
            function = scopes[-1]
            assert isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
            name = "" if self._called_at(function, scopes[:-1]) else self._parameter(function, scopes) or ""
            if not name:
                reason = f"{function.name} is called directly, or uses the names tasks or Tasks for something else"
        if reason:
            self.plan.leave(call, "BackgroundTask", reason)
            return
        target = f"{name}.add_task"
        self.plan.edit(parents[-3], ScheduleBeforeReturn(target))  # type: ignore[arg-type]
        self.plan.move(call, "BackgroundTask", f"{target}({ast.unparse(call.args[0])}, ...)")
        self._forget(call.func)

    def _why_not_background(self, call: ast.Call, scopes: tuple[Scope, ...], parents: tuple[ast.AST, ...]) -> str:
        if len(parents) < 3 or not isinstance(parents[-1], ast.keyword) or parents[-1].arg != "background":
            return "it is not written as background=BackgroundTask(...) of a response"
        response = parents[-2]
        if not isinstance(response, ast.Call) or not isinstance(parents[-3], ast.Return):
            return "its response is not returned in the same statement"
        name = last_name(response.func)
        if name in _STREAMS:
            return (
                f"a {name} does not run it after every failure, and a task would run: if that is right, write "
                f"tasks.add_task({', '.join(ast.unparse(argument) for argument in call.args)}, ...)"
            )
        referent = _external(self.project.resolve(self.module, scopes, response.func))
        if name not in _PLAIN_RESPONSES or not referent.startswith(("fastapi.", "starlette.")):
            return f"{ast.unparse(response.func)} is not a response of FastAPI or Starlette"
        if not scopes or not isinstance(scopes[-1], ast.FunctionDef | ast.AsyncFunctionDef):
            return "it is not in an endpoint"
        function = scopes[-1]
        outer = scopes[:-1]
        routes = [decorator for decorator in function.decorator_list if self._is_route(self.module, outer, decorator)]
        if not routes or len(routes) != len(function.decorator_list):
            return f"{function.name} is not an endpoint, or has other decorators"
        if any(self._annotates_background_tasks(parameter, outer) for parameter in parameters(function)):
            return "the endpoint has BackgroundTasks as well, which this response replaces"
        if not call.args or any(not _is_simple(part) for part in [*call.args, *(k.value for k in call.keywords)]):
            return "its arguments are expressions that would be evaluated before those of the response"
        if any(keyword.arg in (None, "func") for keyword in call.keywords):
            return "its function is not the first argument"
        if self._dependency_facts(function, outer, set()).add_tasks:
            return "a dependency adds tasks, which this response replaces"
        if "values" not in self.assume:
            return self._why_closed(call, function, outer)
        return ""

    # repeat_every

    def _periodic(self, function: Function) -> None:
        for decorator in function.decorator_list:
            if isinstance(decorator, ast.Call) and last_name(decorator.func) == "repeat_every":
                self.plan.leave(
                    decorator,
                    "repeat_every",
                    f"it pauses after each run, and a periodic task starts at fixed times: if that is right, write "
                    f"get_scheduler(app).periodic(every(...)).schedule({function.name}) in the lifespan",
                )

    def _forget(self, node: ast.expr) -> None:
        """Note that an import may be unused now."""
        root = node
        while isinstance(root, ast.Attribute):
            root = root.value
        assert isinstance(root, ast.Name)
        for bound in self.module.names.get(root.id, ()):
            if isinstance(bound, ast.Import | ast.ImportFrom):
                for alias in bound.names:
                    if (alias.asname or alias.name) == root.id:
                        if isinstance(bound, ast.Import):
                            self.plan.unused.add((alias.name, None, alias.asname))
                        else:
                            assert bound.module is not None
                            self.plan.unused.add((bound.module, alias.name, alias.asname))


@dataclass(frozen=True)
class _Facts:
    closes: bool
    add_tasks: bool


def _external(referent: Referent | None) -> str:
    return referent.name if isinstance(referent, External) else ""


def _is_text(node: ast.expr) -> bool:
    if isinstance(node, ast.Constant):
        return isinstance(node.value, str)
    return isinstance(node, ast.JoinedStr) and all(
        _is_simple(part.value) for part in node.values if isinstance(part, ast.FormattedValue)
    )


def _is_simple(node: ast.expr) -> bool:
    """Return whether the order in which the expression is evaluated makes no difference."""
    while isinstance(node, ast.Attribute):
        node = node.value
    return isinstance(node, ast.Name | ast.Constant)


def _yields(function: Function) -> bool:
    return any(
        isinstance(node, ast.Yield | ast.YieldFrom) and _nearest_function(parents) is function
        for node, _, parents in walk(function, ())
    )


def _nearest_function(parents: Sequence[ast.AST]) -> ast.AST | None:
    return next(
        (
            parent
            for parent in reversed(parents)
            if isinstance(parent, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        ),
        None,
    )


def _never_ends(function: Function) -> bool:
    """Return whether the function has a loop that sleeps, or one without an end."""
    for node in ast.walk(function):
        if not isinstance(node, ast.While):
            continue
        below = list(ast.walk(node))
        if any(isinstance(inner, ast.Call) and last_name(inner.func) == "sleep" for inner in below):
            return True
        endless = isinstance(node.test, ast.Constant) and bool(node.test.value)
        if endless and not any(isinstance(inner, ast.Break | ast.Return) for inner in below):
            return True
    return False


def _returns_coroutine_function(decorator: ast.FunctionDef) -> bool:
    """Return whether a decorator always returns an `async def` that is defined in it, and not decorated further."""
    inner = {
        node.name
        for node in decorator.body
        if isinstance(node, ast.AsyncFunctionDef)
        and not _yields(node)
        and all(isinstance(d, ast.Call) and last_name(d.func) == "wraps" for d in node.decorator_list)
    }
    returned = [
        node.value
        for node, _, parents in walk(decorator, ())
        if isinstance(node, ast.Return) and _nearest_function(parents) is decorator
    ]
    return bool(returned) and all(
        isinstance(value, ast.Name) and value.id in inner and len(bindings(decorator)[value.id]) == 1
        for value in returned
    )


def _decorators(scopes: Sequence[Scope]) -> Iterator[tuple[Function, str]]:
    """Yield the functions around a call, with the last name of each decorator."""
    for scope in scopes:
        if isinstance(scope, ast.FunctionDef | ast.AsyncFunctionDef):
            for decorator in scope.decorator_list:
                yield scope, last_name(decorator.func if isinstance(decorator, ast.Call) else decorator)


def _catches(parents: Sequence[ast.AST], names: set[str], *, silent: bool) -> bool:
    """Return whether a `try` in the same function catches one of *names*; if *silent*, only if it does nothing then."""
    start = max(
        index
        for index, parent in enumerate(parents)
        if isinstance(parent, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
    )
    for parent, below in pairwise(parents[start:]):
        if isinstance(parent, ast.With | ast.AsyncWith):
            for item in parent.items:
                call = item.context_expr
                if not isinstance(call, ast.Call) or last_name(call.func) != "suppress":
                    continue
                if any(last_name(argument) in names | {"Exception"} for argument in call.args):
                    return True
        if not isinstance(parent, ast.Try | ast.TryStar):
            continue
        if not any(below is statement for statement in parent.body):
            continue
        for handler in parent.handlers:
            types = [handler.type] if not isinstance(handler.type, ast.Tuple) else handler.type.elts
            caught = handler.type is None or any(kind is not None and last_name(kind) in names for kind in types)
            if handler.type is None and not silent:
                continue
            if caught and (not silent or all(isinstance(s, ast.Pass | ast.Continue) for s in handler.body)):
                return True
    return False


def _mentions(function: Function, name: str) -> bool:
    return any(
        (isinstance(node, ast.Name) and node.id == name) or (isinstance(node, ast.arg) and node.arg == name)
        for node in ast.walk(function)
    )


def _names_used(node: ast.expr, values: set[ast.AST]) -> Iterator[str]:
    """Yield the names whose objects may be part of the result: not those that only *values* are read from."""
    if isinstance(node, ast.JoinedStr) or node in values:
        return
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _TO_VALUES:
        return
    if isinstance(node, ast.Name):
        yield node.id
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.expr):
            yield from _names_used(child, values)
        elif isinstance(child, ast.keyword):
            yield from _names_used(child.value, values)
        elif isinstance(child, ast.comprehension):
            yield from _names_used(child.iter, values)


def _assignments(node: ast.AST) -> Iterator[tuple[list[ast.expr], ast.expr]]:
    match node:
        case ast.Assign():
            yield node.targets, node.value
        case ast.AnnAssign(value=ast.expr() as value) | ast.AugAssign(value=value) | ast.NamedExpr(value=value):
            yield [node.target], value
        case ast.For() | ast.AsyncFor() | ast.comprehension():
            yield [node.target], node.iter
        case ast.With() | ast.AsyncWith():
            for item in node.items:
                if item.optional_vars is not None:
                    yield [item.optional_vars], item.context_expr
        case ast.Call(func=ast.Attribute(value=ast.Name() as receiver)):
            # `found.append(row)` and `options.update(session=session)` put an object into another one.
            for argument in [*node.args, *(keyword.value for keyword in node.keywords)]:
                yield [receiver], argument


def _with_defaults(function: Function) -> Iterator[tuple[ast.arg, ast.expr | None]]:
    arguments = function.args
    positional = [*arguments.posonlyargs, *arguments.args]
    padding: list[ast.expr | None] = [None] * (len(positional) - len(arguments.defaults))
    yield from zip(positional, [*padding, *arguments.defaults], strict=True)
    yield from zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)


def _most(statements: Sequence[ast.stmt], calls: set[int]) -> int:
    """Return how many of the calls may run, at most, in one pass through the statements (a loop counts twice)."""
    total = 0
    for statement in statements:
        match statement:
            case ast.If():
                total += max(_most(statement.body, calls), _most(statement.orelse, calls))
            case ast.For() | ast.AsyncFor() | ast.While():
                total += 2 * _most(statement.body, calls) + _most(statement.orelse, calls)
            case ast.With() | ast.AsyncWith():
                total += _most(statement.body, calls)
            case ast.Match():
                total += max(_most(case.body, calls) for case in statement.cases)
            case ast.Try() | ast.TryStar():
                total += sum(_most(body, calls) for body in (statement.body, statement.orelse, statement.finalbody))
                total += max((_most(handler.body, calls) for handler in statement.handlers), default=0)
            case _:
                total += sum(id(node) in calls for node in ast.walk(statement))
    return total
