"""The changes to the source of one file; libcst keeps every comment and all layout that is not part of a call."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TypeVar, cast

import libcst as cst
from libcst.metadata import MetadataWrapper, PositionProvider

from ._decide import (
    AddParameter,
    Edit,
    Place,
    Plan,
    ReplaceParameter,
    ScheduleBeforeReturn,
    ScheduleCoroutine,
    ScheduleFunction,
)
from ._imports import add_import, has_comment, remove_import

_Node = TypeVar("_Node", bound=cst.CSTNode)


class RewriteError(Exception):
    """A change that was decided on could not be made in full; the file stays as it is."""


def rewrite(plan: Plan) -> bytes:
    """
    Return the new source of the module.

    Raises:
        RewriteError: not every change could be made, or the result would not compile.
    """
    wrapper = MetadataWrapper(cst.parse_module(plan.module.source), unsafe_skip_copy=True)
    editor = _Editor(plan)
    module: cst.Module = wrapper.visit(editor)
    if missing := plan.edits.keys() - editor.done:
        line = min(place[0] for place, _ in missing)
        raise RewriteError(f"line {line} has a layout that could not be changed")
    if plan.imports:
        module = add_import(module, plan.imports)
    for source, name, alias in sorted(plan.unused, key=str):
        module = remove_import(module, source, name, alias)
    try:
        with warnings.catch_warnings(action="ignore"):
            compile(module.bytes, plan.module.shown, "exec", dont_inherit=True)
    except SyntaxError as error:
        raise RewriteError(f"the result would not compile: {error.msg}") from error
    return module.bytes


class _Editor(cst.CSTTransformer):
    METADATA_DEPENDENCIES = (PositionProvider,)

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self._edits = plan.edits
        self._indent = ""
        self.done: set[tuple[Place, type[Edit]]] = set()

    def visit_Module(self, node: cst.Module) -> None:
        self._indent = node.default_indent

    def _find(self, node: cst.CSTNode, kind: type[Edit]) -> Edit | None:
        start = self.get_metadata(PositionProvider, node).start
        return self._edits.get(((start.line, start.column), kind))

    def _made(self, node: cst.CSTNode, kind: type[Edit]) -> None:
        start = self.get_metadata(PositionProvider, node).start
        self.done.add(((start.line, start.column), kind))

    def leave_Expr(self, original_node: cst.Expr, updated_node: cst.Expr) -> cst.Expr:
        call, new = original_node.value, updated_node.value
        if not isinstance(call, cst.Call) or not isinstance(new, cst.Call):
            return updated_node
        if isinstance(edit := self._find(call, ScheduleCoroutine), ScheduleCoroutine):
            self._made(call, ScheduleCoroutine)
            return updated_node.with_changes(value=self._schedule_coroutine(new, edit.target))
        if isinstance(edit := self._find(call, ScheduleFunction), ScheduleFunction):
            self._made(call, ScheduleFunction)
            return updated_node.with_changes(value=new.with_changes(func=cst.parse_expression(edit.target)))
        return updated_node

    def _schedule_coroutine(self, call: cst.Call, target: str) -> cst.Call:
        coroutine = call.args[0]
        inner = coroutine.value
        assert isinstance(inner, cst.Call)
        scheduler: cst.BaseExpression = cst.parse_expression(target)
        if len(call.args) > 1:
            if has_comment(call.args[1].comma) or has_comment(call.args[1].whitespace_after_arg):
                raise RewriteError("a comment stands behind the name of the task")
            name = call.args[1].with_changes(comma=cst.MaybeSentinel.DEFAULT, whitespace_after_arg=_NOTHING)
            scheduler = cst.Call(cst.Attribute(scheduler, cst.Name("task")), [name])
        outer = (call.whitespace_before_args, coroutine.comma, coroutine.whitespace_after_arg)
        if any(has_comment(space) for space in outer):
            raise RewriteError("a comment stands around the coroutine")
        before, args = inner.whitespace_before_args, list(inner.args)
        if not args and has_comment(before):
            raise RewriteError("a comment stands in the call of the coroutine function")
        if _is_multiline(call.whitespace_before_args):
            if _is_multiline(before):
                args = [_dedented(arg, self._indent) for arg in args]
                before = _dedented(before, self._indent)
            elif args:
                # The inner call is on one line; the outer one keeps its lines.
                args[-1] = args[-1].with_changes(
                    comma=coroutine.comma, whitespace_after_arg=coroutine.whitespace_after_arg
                )
        between = before if _is_multiline(before) else cst.SimpleWhitespace(" ")
        if args:
            function = cst.Arg(inner.func, comma=cst.Comma(whitespace_after=between))
        elif _is_multiline(call.whitespace_before_args):
            function = cst.Arg(inner.func, comma=coroutine.comma, whitespace_after_arg=coroutine.whitespace_after_arg)
        else:
            function = cst.Arg(inner.func)
        start = _without_comments(before) if _is_multiline(before) and args else call.whitespace_before_args
        return call.with_changes(
            func=cst.Attribute(scheduler, cst.Name("schedule")), whitespace_before_args=start, args=[function, *args]
        )

    def leave_SimpleStatementLine(
        self, original_node: cst.SimpleStatementLine, updated_node: cst.SimpleStatementLine
    ) -> cst.SimpleStatementLine | cst.FlattenSentinel[cst.SimpleStatementLine]:
        statement, new = original_node.body[0], updated_node.body[0]
        if len(original_node.body) != 1 or not isinstance(new, cst.Return) or not isinstance(new.value, cst.Call):
            return updated_node
        edit = self._find(statement, ScheduleBeforeReturn)
        if not isinstance(edit, ScheduleBeforeReturn):
            return updated_node
        response = new.value
        index = next(i for i, arg in enumerate(response.args) if arg.keyword and arg.keyword.value == "background")
        background = response.args[index]
        assert isinstance(background.value, cst.Call)
        if any(has_comment(part) for part in (background.comma, background.whitespace_after_arg)):
            raise RewriteError("a comment stands behind the BackgroundTask")
        task = background.value.with_changes(func=cst.parse_expression(edit.target))
        if _is_multiline(response.whitespace_before_args):
            task = _dedented(task, self._indent)
        args = [arg for i, arg in enumerate(response.args) if i != index]
        if index == len(args) and args:
            args[-1] = args[-1].with_changes(
                comma=background.comma, whitespace_after_arg=background.whitespace_after_arg
            )
        space = response.whitespace_before_args if args else _NOTHING
        if not args and has_comment(response.whitespace_before_args):
            raise RewriteError("a comment stands before the BackgroundTask")
        self._made(statement, ScheduleBeforeReturn)
        schedule = cst.SimpleStatementLine([cst.Expr(task)], leading_lines=updated_node.leading_lines)
        value = response.with_changes(args=args, whitespace_before_args=space)
        return cst.FlattenSentinel(
            [schedule, updated_node.with_changes(body=[new.with_changes(value=value)], leading_lines=[])]
        )

    def leave_FunctionDef(self, original_node: cst.FunctionDef, updated_node: cst.FunctionDef) -> cst.FunctionDef:
        # ast places a function at its `def` or `async`, after the decorators; so does PositionProvider.
        params = updated_node.params
        if isinstance(edit := self._find(original_node, ReplaceParameter), ReplaceParameter):
            params = _replaced(params, edit)
            self._made(original_node, ReplaceParameter)
        if self._find(original_node, AddParameter) is not None:
            params = _with_tasks(params)
            self._made(original_node, AddParameter)
        return updated_node.with_changes(params=params)


_NOTHING = cst.SimpleWhitespace("")


def _replaced(params: cst.Parameters, edit: ReplaceParameter) -> cst.Parameters:
    def change(parameters: Sequence[cst.Param]) -> list[cst.Param]:
        return [
            param.with_changes(name=cst.Name(edit.new), annotation=_annotation(param))
            if param.name.value == edit.old
            else param
            for param in parameters
        ]

    return params.with_changes(params=change(params.params), kwonly_params=change(params.kwonly_params))


def _annotation(param: cst.Param) -> cst.Annotation:
    tasks = cst.Name("Tasks")
    return cst.Annotation(tasks) if param.annotation is None else param.annotation.with_changes(annotation=tasks)


def _with_tasks(params: cst.Parameters) -> cst.Parameters:
    """Return the parameters with `tasks: Tasks` before the first that has a default."""
    existing = list(params.params)
    index = next((i for i, param in enumerate(existing) if param.default is not None), len(existing))
    tasks = cst.Param(cst.Name("tasks"), cst.Annotation(cst.Name("Tasks")))
    if index < len(existing):
        following = existing[index]
        comma = following.comma if isinstance(following.comma, cst.Comma) and index + 1 < len(existing) else None
        if comma is None or has_comment(comma):
            comma = cst.Comma(whitespace_after=_space_like(existing))
        existing.insert(index, tasks.with_changes(comma=comma))
        return params.with_changes(params=existing)
    if not existing or not isinstance(params.star_arg, cst.MaybeSentinel) or params.kwonly_params or params.star_kwarg:
        comma = cst.Comma(whitespace_after=cst.SimpleWhitespace(" "))
        more = bool(params.kwonly_params or params.star_kwarg or not isinstance(params.star_arg, cst.MaybeSentinel))
        return params.with_changes(params=[*existing, tasks.with_changes(comma=comma) if more else tasks])
    last, between = existing[-1], _space_like(existing)
    if has_comment(last.comma) or has_comment(last.whitespace_after_param):
        # The comment belongs to the parameter that was the last one.
        comma = last.comma if isinstance(last.comma, cst.Comma) else cst.Comma()
        end = comma.whitespace_after
        if not isinstance(end, cst.ParenthesizedWhitespace) or not isinstance(between, cst.ParenthesizedWhitespace):
            raise RewriteError("a comment stands behind the last parameter")
        space = end.with_changes(last_line=between.last_line, indent=between.indent)
        existing[-1] = last.with_changes(comma=comma.with_changes(whitespace_after=space))
        tasks = tasks.with_changes(comma=cst.Comma(whitespace_after=_without_comments(end)))
    else:
        tasks = tasks.with_changes(comma=last.comma, whitespace_after_param=last.whitespace_after_param)
        existing[-1] = last.with_changes(comma=cst.Comma(whitespace_after=between), whitespace_after_param=_NOTHING)
    return params.with_changes(params=[*existing, tasks])


def _space_like(params: Sequence[cst.Param]) -> cst.BaseParenthesizableWhitespace:
    """Return the space between parameters, one line for each if they are written so."""
    if len(params) > 1:
        comma = params[0].comma
        assert isinstance(comma, cst.Comma)
        return _without_comments(comma.whitespace_after)
    last = params[0].comma
    if isinstance(last, cst.Comma) and isinstance(last.whitespace_after, cst.ParenthesizedWhitespace):
        raise RewriteError("the only parameter stands on a line of its own")
    return cst.SimpleWhitespace(" ")


def _is_multiline(space: cst.BaseParenthesizableWhitespace) -> bool:
    return isinstance(space, cst.ParenthesizedWhitespace)


def _without_comments(space: cst.BaseParenthesizableWhitespace) -> cst.BaseParenthesizableWhitespace:
    if not isinstance(space, cst.ParenthesizedWhitespace):
        return space
    return space.with_changes(first_line=cst.TrailingWhitespace(), empty_lines=[])


class _Dedenter(cst.CSTTransformer):
    def __init__(self, indent: str) -> None:
        super().__init__()
        self._indent = indent

    def leave_ParenthesizedWhitespace(
        self, original_node: cst.ParenthesizedWhitespace, updated_node: cst.ParenthesizedWhitespace
    ) -> cst.ParenthesizedWhitespace:
        last = updated_node.last_line
        return updated_node.with_changes(
            last_line=self._shorter(last),
            empty_lines=[
                line.with_changes(whitespace=self._shorter(line.whitespace)) for line in updated_node.empty_lines
            ],
        )

    def _shorter(self, space: cst.SimpleWhitespace) -> cst.SimpleWhitespace:
        return space.with_changes(value=space.value.removeprefix(self._indent))


def _dedented(node: _Node, indent: str) -> _Node:
    return cast(_Node, node.visit(_Dedenter(indent)))
