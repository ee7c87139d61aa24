"""Serializing the arguments of a durable function to JSON, and restoring them on the worker."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeAlias, get_type_hints

from tasks_core.exceptions import ArgumentCodecError

Json: TypeAlias = "dict[str, Json] | list[Json] | str | int | float | bool | None"
"""The values that JSON has. A value that it cannot represent is an error at the call."""


# The escape of a NUL character, and not an escaped backslash in front of five letters.
_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")


class ValueCodec(Protocol):
    """Converts the value of one parameter to JSON text and back."""

    def dump(self, value: Any, /) -> str: ...
    def load(self, text: str, /) -> Any: ...


class PlainCodec:
    """Plain JSON, used where pydantic is not installed: supports the types that JSON itself has."""

    __slots__ = ()

    def dump(self, value: Any, /) -> str:
        return json.dumps(value, allow_nan=False, ensure_ascii=False)

    def load(self, text: str, /) -> Any:
        return json.loads(text)


class PydanticCodec:
    """Validation by pydantic: supports dates, UUIDs, enums, dataclasses, models and collections of them."""

    __slots__ = ("_adapter",)

    def __init__(self, annotation: Any) -> None:
        from pydantic import TypeAdapter

        self._adapter: TypeAdapter[Any] = TypeAdapter(annotation)

    def dump(self, value: Any, /) -> str:
        return self._adapter.dump_json(value, warnings="error").decode()

    def load(self, text: str, /) -> Any:
        return self._adapter.validate_json(text)


class ArgumentCodec:
    """
    The arguments of one function, by parameter.

    Created at the first call and not at decoration, because every name in an annotation is defined only then.

    Raises:
        ArgumentCodecError: an annotation is a type that JSON cannot represent.
    """

    __slots__ = ("_codecs", "_name", "_signature")

    def __init__(self, name: str, func: Callable[..., Any]) -> None:
        self._name = name
        self._signature = inspect.signature(func)
        make = _codec_maker()
        hints = _hints(func)
        self._codecs: dict[str, ValueCodec] = {}
        for parameter in self._signature.parameters.values():
            annotation = _annotation(parameter, hints)
            try:
                self._codecs[parameter.name] = make(annotation)
            except Exception:
                raise self._error(
                    parameter.name, f"is annotated {_show(annotation)}, which JSON cannot carry"
                ) from None

    def encode(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Json]:
        """
        Return the arguments as JSON values, by the name of the parameter; the worker fills in the defaults.

        Raises:
            ArgumentCodecError: a value would be changed by the conversion.
        """
        bound = self._signature.bind(*args, **kwargs)
        return {name: self._encode(name, value) for name, value in bound.arguments.items()}

    def _encode(self, name: str, value: Any) -> Json:
        codec = self._codecs[name]
        if self._signature.parameters[name].kind is inspect.Parameter.VAR_POSITIONAL:
            value = list(value)
        try:
            text = codec.dump(value)
            same = bool(codec.load(text) == value)
        except Exception:  # its message may contain the value, which must not be shown
            raise self._error(name, f"was given a {_type_name(value)}, which JSON cannot carry") from None
        if not same:
            raise self._error(name, f"was given a {_type_name(value)}, which JSON does not restore as the same value")
        if _NUL.search(text):
            raise self._error(name, "was given a text with a NUL character, which PostgreSQL does not store")
        encoded: Json = json.loads(text)
        return encoded

    def decode(self, arguments: Mapping[str, Json]) -> inspect.BoundArguments:
        """
        Restore arguments; the result has `args` and `kwargs`.

        Raises:
            ArgumentCodecError: they are not arguments of this function, or have other types.
        """
        values = {}
        for name, value in arguments.items():
            codec = self._codecs.get(name)
            if codec is None:
                raise ArgumentCodecError(f"{self._name} was called with {name!r}, which is not one of its parameters")
            try:
                values[name] = codec.load(json.dumps(value))
            except Exception:
                raise self._error(name, "has a value that the annotation does not allow") from None
        for parameter in self._signature.parameters.values():
            if parameter.kind is parameter.VAR_POSITIONAL and parameter.name in values:
                values[parameter.name] = tuple(values[parameter.name])
            elif parameter.default is parameter.empty and parameter.name not in values and not _is_variadic(parameter):
                raise self._error(parameter.name, "has no default, and the call has no value for it")
        return inspect.BoundArguments(self._signature, values)

    def _error(self, parameter: str, what: str) -> ArgumentCodecError:
        return ArgumentCodecError(
            f"{self._name}: parameter {parameter!r} {what}. Pass what identifies the object, such as its id, and "
            "annotate the parameter with its type"
        )


def _codec_maker() -> Callable[[object], ValueCodec]:
    try:
        import pydantic  # noqa: F401
    except ImportError:
        return lambda _annotation: PlainCodec()
    return PydanticCodec


def _hints(func: Callable[..., Any]) -> dict[str, Any]:
    try:
        return get_type_hints(func, include_extras=True)
    except Exception:
        return {}  # a name that exists for type checkers only, so that the parameter is plain JSON


def _annotation(parameter: inspect.Parameter, hints: Mapping[str, Any]) -> Any:
    annotation = hints.get(parameter.name, Any)
    if parameter.kind is parameter.VAR_POSITIONAL:
        return list[annotation]  # type: ignore[valid-type]  # made at run time
    if parameter.kind is parameter.VAR_KEYWORD:
        return dict[str, annotation]  # type: ignore[valid-type]  # made at run time
    return annotation


def _is_variadic(parameter: inspect.Parameter) -> bool:
    return parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)


def _type_name(value: object) -> str:
    cls = type(value)
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"


def _show(annotation: object) -> str:
    return getattr(annotation, "__qualname__", None) or str(annotation)
