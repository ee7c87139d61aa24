"""Arguments of durable functions: what is restored as it was, what is refused at the call, and with which words."""

from __future__ import annotations

import typing
from dataclasses import dataclass
from datetime import datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import typing_extensions
from pydantic import AliasGenerator, BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel
from tasks_core._durable.codec import LIMIT, ArgumentCodec, check_json
from tasks_core.exceptions import ArgumentCodecError

BERLIN = ZoneInfo("Europe/Berlin")


def moved(annotation: Any, value: Any) -> Any:
    """Return what a worker gets for *value* in a parameter with this annotation."""

    def function(value: Any) -> None: ...

    function.__annotations__["value"] = annotation
    codec = ArgumentCodec("function", function)
    return codec.decode(codec.encode((value,), {})).args[0]


@dataclass
class Appointment:
    at: datetime
    until: list[datetime]
    place: str = "here"


class Customer(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel)

    given_name: str
    orders: list[int] = []


class Renamed(BaseModel):
    given_name: str = Field(alias="name")


class TwoNames(BaseModel):
    model_config = ConfigDict(alias_generator=AliasGenerator(validation_alias=to_camel, serialization_alias=str.upper))

    given_name: str


class Point(typing.TypedDict):
    x: int
    y: typing.NotRequired[int]


class Line(typing.TypedDict, total=False):
    points: list[Point]


class Other(typing_extensions.TypedDict):
    x: int


@pytest.mark.parametrize("fold", [0, 1])
@pytest.mark.parametrize("hour", [1, 2, 3])
def test_a_local_time_is_the_same_moment_in_both_folds(hour: int, fold: int) -> None:
    """On that night, 02:30 exists twice. By PEP 495 it is equal to no time of another zone."""
    at = datetime(2026, 10, 25, hour, 30, tzinfo=BERLIN, fold=fold)
    restored = moved(datetime, at)
    assert restored.timestamp() == at.timestamp()
    assert restored.utcoffset() == at.utcoffset()


def test_a_local_time_that_does_not_exist_is_the_moment_that_python_takes_it_for() -> None:
    at = datetime(2026, 3, 29, 2, 30, tzinfo=BERLIN)
    assert moved(datetime, at).timestamp() == at.timestamp()


def test_local_times_inside_of_other_values() -> None:
    at = datetime(2026, 10, 25, 2, 30, tzinfo=BERLIN, fold=1)
    restored = moved(Appointment, Appointment(at, [at, at + timedelta(days=1)]))
    assert restored.at.timestamp() == restored.until[0].timestamp() == at.timestamp()
    assert moved(dict[str, tuple[datetime, ...]], {"at": (at,)})["at"][0].timestamp() == at.timestamp()


def test_another_moment_is_not_the_same() -> None:
    """Below a microsecond pydantic rounds nothing, so a wrong moment has to be made up."""

    class Later(BaseModel):
        at: datetime

        def model_post_init(self, context: Any) -> None:
            self.at += timedelta(hours=1)

    with pytest.raises(ArgumentCodecError, match="which JSON does not restore as the same value"):
        moved(Later, Later(at=datetime(2026, 10, 25, 2, 30, tzinfo=BERLIN)))


@pytest.mark.parametrize("value", [(1, 2), [(1, 2)], {"a": (1, 2)}, {1: "a"}, {1, 2}, b"x", time(2, 30, tzinfo=BERLIN)])
def test_what_json_would_change_is_refused(value: Any) -> None:
    with pytest.raises(ArgumentCodecError, match="parameter 'value' was given a "):
        moved(Any, value)


def test_models_with_aliases() -> None:
    customer = Customer.model_validate({"givenName": "Ann", "orders": [1]})
    assert moved(Customer, customer) == customer
    assert moved(list[Customer], [customer]) == [customer]
    assert moved(Renamed, Renamed(name="Ann")) == Renamed(name="Ann")


def test_a_model_that_cannot_read_what_it_writes_is_refused_with_the_reason_and_without_the_value() -> None:
    with pytest.raises(ArgumentCodecError) as caught:
        moved(TwoNames, TwoNames.model_validate({"givenName": "Ann"}))
    assert "givenName: missing" in str(caught.value)
    assert "Ann" not in str(caught.value)


@pytest.mark.parametrize(
    "annotation, value",
    [
        (Point, {"x": 1}),
        (Point, {"x": 1, "y": 2}),
        (Line, {"points": [{"x": 1}]}),
        (Line | None, None),
        (dict[str, Point], {"a": {"x": 1}}),
        (Other, {"x": 1}),
        (typing.Annotated[Point, "noted"], {"x": 1}),
    ],
)
def test_typed_dictionaries(annotation: Any, value: Any) -> None:
    """Those of `typing` too, which pydantic does not take before Python 3.12."""
    assert moved(annotation, value) == value


def test_a_typed_dictionary_is_checked() -> None:
    with pytest.raises(ArgumentCodecError, match="parameter 'value' was given a dict"):
        moved(Point, {"x": "one"})


@pytest.mark.parametrize("value", ["x" * LIMIT, ["x" * 1000] * 1049, {"a": {"b": ["x" * LIMIT]}}])
def test_large_arguments_are_refused_with_what_to_do(value: Any) -> None:
    with pytest.raises(ArgumentCodecError) as caught:
        moved(Any, value)
    assert str(caught.value).startswith("function: the arguments are more than 1 MiB (1048576 bytes) as JSON")
    assert "Store the data, and pass its id" in str(caught.value)


def test_all_arguments_together_have_the_limit() -> None:
    def function(*values: str) -> None: ...

    codec = ArgumentCodec("function", function)
    codec.encode(("x" * (LIMIT // 2 - 100),) * 2, {})
    with pytest.raises(ArgumentCodecError, match="more than 1 MiB"):
        codec.encode(("x" * (LIMIT // 2 - 100),) * 3, {})


def test_a_value_that_is_much_too_large_is_not_encoded() -> None:
    class Costly(str):
        """A text whose conversion would be noticed."""

        def encode(self, *_args: Any, **_kwargs: Any) -> bytes:
            raise AssertionError("it was encoded")

    with pytest.raises(ArgumentCodecError, match="more than 1 MiB"):
        moved(Any, [Costly("x" * LIMIT)])


@dataclass
class Report:
    text: str


def test_the_limit_holds_inside_of_dataclasses_and_models() -> None:
    with pytest.raises(ArgumentCodecError, match="more than 1 MiB"):
        moved(Report, Report("x" * LIMIT))
    with pytest.raises(ArgumentCodecError, match="more than 1 MiB"):
        moved(Customer, Customer.model_validate({"givenName": "x" * LIMIT}))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "\x00", "\ud800", {1: 2}, (1,), object(), {"a": [b"x"]}])
def test_json_is_checked_without_a_codec(value: Any) -> None:
    with pytest.raises(ArgumentCodecError, match=r"^report_progress\(\): "):
        check_json(value, "report_progress()")


@pytest.mark.parametrize("value", [None, True, 1, 0.5, "text", "\\u0000", [1, {"a": None}], {"percent": 50}])
def test_json_is_let_through(value: Any) -> None:
    check_json(value, "report_progress()")


def test_the_limit_is_one_of_bytes() -> None:
    def function(one: str, two: str) -> None: ...

    codec = ArgumentCodec("function", function)
    half = "é" * (LIMIT // 4)
    with pytest.raises(ArgumentCodecError, match="function"):
        codec.encode((half, half), {})
    assert codec.encode((half, "two"), {}) == {"one": half, "two": "two"}
