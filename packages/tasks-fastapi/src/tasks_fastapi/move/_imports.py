"""The imports of a file: those that its tasks need, and those that it needs no longer."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from itertools import takewhile

import libcst as cst

_PACKAGE = "tasks_fastapi"


def add_import(module: cst.Module, names: Iterable[str]) -> cst.Module:
    """Import the names from tasks_fastapi: in the statement that imports from it, or in one of their own."""
    body = list(module.body)
    wanted = sorted(set(names))
    first = after = int(_is_docstring(body[0]))
    imports = takewhile(lambda line: isinstance(_only(line), cst.Import | cst.ImportFrom), body[first:])
    for index, line in enumerate(imports, first):
        statement = _only(line)
        relative = False
        if isinstance(statement, cst.ImportFrom):
            if _name(statement) == _PACKAGE and not isinstance(statement.names, cst.ImportStar):
                imported = {alias.evaluated_name for alias in statement.names if alias.asname is None}
                body[index] = _with_names(line, statement, [name for name in wanted if name not in imported])
                return module.with_changes(body=body)
            relative = bool(statement.relative)
        if not relative:  # a relative import comes after those of other packages
            after = index + 1
    new = cst.parse_statement(f"from {_PACKAGE} import {', '.join(wanted)}\n")
    body.insert(after, new)
    if after == 0:
        body[1] = body[1].with_changes(leading_lines=[cst.EmptyLine(indent=False), *body[1].leading_lines])
    return module.with_changes(body=body)


def remove_import(module: cst.Module, source: str, name: str | None, alias: str | None) -> cst.Module:
    """Remove `import source` or `from source import name` if the file does not mention the imported name elsewhere."""
    bound = alias or name or source
    if "." in bound or _mentions(module.code, bound):
        return module
    body = list(module.body)
    for index, line in enumerate(body):
        statement = _only(line)
        if not isinstance(statement, cst.Import | cst.ImportFrom) or isinstance(statement.names, cst.ImportStar):
            continue
        if isinstance(statement, cst.ImportFrom) != (name is not None):
            continue
        if isinstance(statement, cst.ImportFrom) and _name(statement) != source:
            continue
        aliases = list(statement.names)
        kept = [each for each in aliases if (each.evaluated_alias or each.evaluated_name) != bound]
        if len(kept) == len(aliases):
            continue
        assert isinstance(line, cst.SimpleStatementLine)
        if kept:
            removed = next(each for each in aliases if each not in kept)
            if has_comment(removed):
                return module
            if aliases[-1] is removed:
                kept[-1] = kept[-1].with_changes(comma=removed.comma)
            body[index] = line.with_changes(body=[statement.with_changes(names=kept)])
        elif has_comment(line):
            return module
        else:
            del body[index]
            if index < len(body) and not any(has_comment(space) for space in body[index].leading_lines):
                following = _only(body[index])
                if isinstance(following, cst.Import | cst.ImportFrom):
                    body[index] = body[index].with_changes(leading_lines=line.leading_lines)
        return module.with_changes(body=body)
    return module


def _mentions(source: str, name: str) -> bool:
    """Return whether code uses the name, or a text has it: an annotation in quotes, an item of `__all__`."""
    word = re.compile(rf"\b{re.escape(name)}\b")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name) and node.id == name:
            return True
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and word.search(node.value):
            return True
    return False


def _with_names(line: cst.CSTNode, statement: cst.ImportFrom, names: list[str]) -> cst.SimpleStatementLine:
    assert isinstance(line, cst.SimpleStatementLine)
    assert not isinstance(statement.names, cst.ImportStar)
    aliases = list(statement.names)
    for name in names:
        last = aliases[-1]
        between = next((each.comma for each in aliases[:-1] if not has_comment(each.comma)), None)
        comma = between if isinstance(between, cst.Comma) else cst.Comma(whitespace_after=cst.SimpleWhitespace(" "))
        aliases[-1] = last.with_changes(comma=comma)
        aliases.append(cst.ImportAlias(cst.Name(name), comma=last.comma))
    return line.with_changes(body=[statement.with_changes(names=aliases)])


def _only(line: cst.CSTNode) -> cst.CSTNode | None:
    return line.body[0] if isinstance(line, cst.SimpleStatementLine) and len(line.body) == 1 else None


def _is_docstring(line: cst.CSTNode) -> bool:
    statement = _only(line)
    return isinstance(statement, cst.Expr) and isinstance(statement.value, cst.SimpleString | cst.ConcatenatedString)


def _name(statement: cst.ImportFrom) -> str:
    if statement.module is None or statement.relative:
        return ""
    return cst.Module([]).code_for_node(statement.module)


def has_comment(node: cst.CSTNode | cst.MaybeSentinel) -> bool:
    """Return whether a comment is part of the node."""
    if isinstance(node, cst.MaybeSentinel):
        return False
    return isinstance(node, cst.Comment) or any(has_comment(child) for child in node.children)
