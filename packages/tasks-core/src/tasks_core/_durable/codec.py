"""Serializing the arguments of a durable function to JSON, and its result, and restoring them elsewhere."""

from __future__ import annotations

import inspect
import json
import re
import sys
import typing
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, is_dataclass
from datetime import datetime
from types import UnionType
from typing import Any, NoReturn, Protocol, get_type_hints

from tasks_core._decision import Decision
from tasks_core._support.jsontext import Json
from tasks_core._support.provider import Provided
from tasks_core.exceptions import ArgumentCodecError

LIMIT = 1024 * 1024
"""Bytes that the arguments of one call may have as JSON."""

RESULT_LIMIT = 64 * 1024
"""Bytes that the result of one call may have as JSON."""

# The escape of a NUL character, and not an escaped backslash in front of five letters.
_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")


class ValueCodec(Protocol):
    """Converts the value of one parameter to JSON text and back."""

    def dump(self, value: Any, /) -> str: ...
    def load(self, text: str, /) -> Any: ...
    def same(self, value: Any, restored: Any, /) -> bool:
        """Return whether two values that are not equal are the same all the same."""
        ...


class PlainCodec:
    """Plain JSON, used where pydantic is not installed: supports the types that JSON itself has."""

    __slots__ = ()

    def dump(self, value: Any, /) -> str:
        return json.dumps(value, allow_nan=False, ensure_ascii=False)

    def load(self, text: str, /) -> Any:
        return json.loads(text)

    def same(self, value: Any, restored: Any, /) -> bool:
        return False


class PydanticCodec:
    """Validation by pydantic: supports dates, UUIDs, enums, dataclasses, models and collections of them."""

    __slots__ = ("_adapter",)

    def __init__(self, annotation: Any) -> None:
        from pydantic import TypeAdapter

        self._adapter: TypeAdapter[Any] = TypeAdapter(supported(annotation))

    def dump(self, value: Any, /) -> str:
        # By alias, because a model reads its aliases and not the names of its fields.
        return self._adapter.dump_json(value, by_alias=True, warnings="error").decode()

    def load(self, text: str, /) -> Any:
        return self._adapter.validate_json(text)

    def same(self, value: Any, restored: Any, /) -> bool:
        # A local time in an hour that a change of the clocks repeats or skips is equal to no time of another zone
        # (PEP 495), also when both are the same moment.
        dump = self._adapter.dump_python
        return type(restored) is type(value) and _are_same_moments(dump(value), dump(restored))


def _are_same_moments(value: Any, restored: Any) -> bool:
    """Return whether two values that pydantic has taken apart are equal, with moments compared as moments."""
    if type(value) is not type(restored):
        return False
    if isinstance(value, datetime) and value.tzinfo is not None and restored.tzinfo is not None:
        return bool(value.timestamp() == restored.timestamp())
    if isinstance(value, dict):
        return value.keys() == restored.keys() and all(_are_same_moments(value[k], restored[k]) for k in value)
    if isinstance(value, (list, tuple)):
        return len(value) == len(restored) and all(map(_are_same_moments, value, restored))
    return bool(value == restored)


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
            if parameter.default is Provided:
                continue  # the worker supplies it
            annotation = _annotation(parameter, hints)
            try:
                self._codecs[parameter.name] = make(annotation)
            except Exception as error:
                reason = getattr(error, "code", None)  # of pydantic, such as "class-not-fully-defined"
                shown = f"{_show(annotation)}, which JSON cannot carry{f' ({reason})' if reason else ''}"
                raise self._error(parameter.name, f"is annotated {shown}") from None

    def encode(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Json]:
        """
        Return the arguments as JSON values, by the name of the parameter; the worker fills in the defaults.

        Raises:
            ArgumentCodecError: a value would be changed by the conversion.
        """
        bound = self._signature.bind(*args, **kwargs)
        if _is_longer_than(LIMIT, [*bound.arguments.values()]):
            raise self._too_large()
        texts = {name: self._encode(name, value) for name, value in bound.arguments.items()}
        if sum(len(text.encode()) for text in texts.values()) > LIMIT:
            raise self._too_large()
        return {name: json.loads(text) for name, text in texts.items()}

    def _encode(self, name: str, value: Any) -> str:
        codec = self._codecs.get(name)
        if codec is None:
            raise ArgumentCodecError(
                f"{self._name}: parameter {name!r} has the default Provided, because the worker supplies it. "
                "Do not pass it"
            )
        if self._signature.parameters[name].kind is inspect.Parameter.VAR_POSITIONAL:
            value = list(value)
        text, problem = _serialize(codec, value)
        if problem is not None:
            raise self._error(name, f"was given {problem}")
        return text

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

    def _too_large(self) -> ArgumentCodecError:
        return ArgumentCodecError(
            f"{self._name}: the arguments are more than 1 MiB ({LIMIT} bytes) as JSON, and a row is read by each "
            "worker that runs it. Store the data, and pass its id"
        )

    def _error(self, parameter: str, what: str) -> ArgumentCodecError:
        return ArgumentCodecError(
            f"{self._name}: parameter {parameter!r} {what}. Pass what identifies the object, such as its id, and "
            "annotate the parameter with its type"
        )


@dataclass(frozen=True, slots=True)
class StoredResult:
    """What a durable function returned, as an engine stores it."""

    value: Json = field(default=None, repr=False)
    problem: str | None = None
    """Why there is no value, although the function returned one."""


class ResultCodec:
    """The result of one function, by its return annotation; without one, nothing is stored."""

    __slots__ = ("_codec", "_name", "_problem")

    def __init__(self, name: str, func: Callable[..., Any]) -> None:
        self._name = name
        self._codec: ValueCodec | None = None
        self._problem: str | None = None
        if "return" not in getattr(func, "__annotations__", ()):
            return
        annotation = _without_decisions(_hints(func).get("return", Any))
        if annotation in (None, type(None), NoReturn):
            return
        try:
            self._codec = _codec_maker()(annotation)
        except Exception:
            self._problem = f"the function is annotated to return {_show(annotation)}, which JSON cannot carry"

    def encode(self, value: Any) -> StoredResult | None:
        """Return what is stored for a result; `None` if there is nothing to store. Raises nothing."""
        if value is None or (self._codec is None and self._problem is None):
            return None
        if self._codec is None:
            return StoredResult(problem=self._problem)
        too_large = f"it is more than {RESULT_LIMIT // 1024} KiB as JSON. Store the data, and return its id"
        if _is_longer_than(RESULT_LIMIT, value):
            return StoredResult(problem=too_large)
        text, problem = _serialize(self._codec, value)
        if problem is not None:
            return StoredResult(problem=f"the function returned {problem}")
        if len(text.encode()) > RESULT_LIMIT:
            return StoredResult(problem=too_large)
        return StoredResult(json.loads(text))

    def decode(self, stored: StoredResult) -> Any:
        """
        Restore a result.

        Raises:
            ArgumentCodecError: the annotation of the function in this process does not allow it.
        """
        if self._codec is not None:
            with suppress(Exception):
                return self._codec.load(json.dumps(stored.value))
        raise ArgumentCodecError(f"{self._name}: its return annotation does not allow the result that is stored")


def _without_decisions(annotation: Any) -> Any:
    """Return what a task that succeeds returns: without `Snooze` and `Cancel` of `str | Snooze`."""
    members = (
        typing.get_args(annotation) if typing.get_origin(annotation) in (typing.Union, UnionType) else (annotation,)
    )
    kept = tuple(member for member in members if not (isinstance(member, type) and issubclass(member, Decision)))
    if len(kept) == len(members):
        return annotation
    return typing.Union[kept] if kept else None  # noqa: UP007  made at run time


def _serialize(codec: ValueCodec, value: Any) -> tuple[str, str | None]:
    """Return the JSON text of a value, and what is wrong with the value, if JSON does not restore it unchanged."""
    try:
        text = codec.dump(value)
        restored = codec.load(text)
        same = bool(restored == value) or codec.same(value, restored)
    except Exception as error:  # its message may contain the value, which must not be shown
        return "", f"a {_type_name(value)}, which JSON cannot carry{_reason(error)}"
    if not same:
        return "", f"a {_type_name(value)}, which JSON does not restore as the same value"
    if _NUL.search(text):
        return "", "a text with a NUL character, which PostgreSQL does not store"
    return text, None


def check_json(value: object, where: str) -> str:
    """
    Return *value* as JSON; raise if it is none that PostgreSQL stores unchanged. *where* begins the message.

    Raises:
        ArgumentCodecError: it has a value of another type, a number that is not finite, a NUL or a surrogate, or is
            longer than 1 MiB.
    """
    try:
        text = json.dumps(value, allow_nan=False, ensure_ascii=False)
        same = json.loads(text) == value and len(text.encode()) <= LIMIT
    except (TypeError, ValueError, RecursionError):
        same, text = False, ""
    if not same or _NUL.search(text):
        raise ArgumentCodecError(
            f"{where}: the value must be JSON of at most 1 MiB: texts without NUL, finite numbers, true, false, null, "
            f"lists, and dicts with texts as keys; it is a {_type_name(value)}"
        )
    return text


def _is_longer_than(limit: int, value: object) -> bool:
    """
    Return whether *value* has more than *limit* characters and items, without serializing it.

    A value that is far too large is found before it keeps the event loop busy for seconds. Values of other types than
    those of JSON, dataclasses and models count as one.
    """
    left = limit
    rest: list[object] = [value]
    while rest and left >= 0:
        item = rest.pop()
        left -= 1
        if isinstance(item, (str, bytes)):
            left -= len(item)
        elif isinstance(item, (list, tuple, set, frozenset)):
            left -= len(item)
            rest.extend(item if left >= 0 else ())
        elif isinstance(item, dict):
            left -= len(item)
            rest.extend((*item, *item.values()) if left >= 0 else ())
        elif is_dataclass(item) or hasattr(item, "model_fields_set"):
            rest.append(getattr(item, "__dict__", None))
    return left < 0


def _reason(error: Exception) -> str:
    """Return what pydantic has against a value, without the value: `(0.givenName: missing)`."""
    errors: Any = getattr(error, "errors", None)
    if not callable(errors):
        return ""
    found = errors(include_url=False, include_context=False, include_input=False)
    problems = [f"{'.'.join(map(str, problem['loc'])) or 'value'}: {problem['type']}" for problem in found[:3]]
    return f" ({', '.join(problems)})"


def supported(annotation: Any) -> Any:  # pragma: no cover  # which half runs depends on the version of Python
    """Return an annotation that pydantic takes: before Python 3.12, it does not take the TypedDict of `typing`."""
    if sys.version_info >= (3, 12):
        return annotation
    if typing.is_typeddict(annotation):
        return _supported_typed_dict(annotation)
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return typing.Annotated[supported(arguments[0]), *annotation.__metadata__]
    replaced = tuple(supported(argument) for argument in arguments)
    if replaced == arguments or origin is None:
        return annotation
    return typing.Union[replaced] if origin in (typing.Union, UnionType) else origin[replaced]  # noqa: UP007


def _supported_typed_dict(annotation: Any) -> Any:  # pragma: no cover  # as above
    import typing_extensions  # pydantic needs it too

    fields = {}
    for name, hint in get_type_hints(annotation, include_extras=True).items():
        qualifier = typing.get_origin(hint)
        qualified = qualifier in (typing.Required, typing.NotRequired)
        required = qualifier is typing.Required if qualified else name in annotation.__required_keys__
        wrap = typing_extensions.Required if required else typing_extensions.NotRequired
        fields[name] = wrap[supported(typing.get_args(hint)[0] if qualified else hint)]
    return typing_extensions.TypedDict(annotation.__name__, fields)  # type: ignore[operator]  # made at run time


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
