"""What goes over the wire comes back the same, and whatever else comes is refused in one line."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin

import pytest
from distributed.protocol.serialize import deserialize_bytes, serialize_bytelist
from hypothesis import given
from hypothesis import strategies as st

from swarm.errors import ProtocolError
from swarm.protocol import KINDS, SCHEMA_VERSION, Action, Event, Telemetry, from_wire, to_wire
from tests.support.builders import arrived, worker_joined

FINITE = st.floats(allow_nan=False, allow_infinity=False)
WHOLE = st.integers(-(2**63), 2**63 - 1)
WIRE = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text() | st.binary(),
    lambda inside: st.lists(inside) | st.dictionaries(st.text() | WHOLE, inside),
    max_leaves=8,
)
"""Anything that msgpack can carry, and a bit more."""


def values_of(hint: Any) -> st.SearchStrategy[Any]:
    """Values that fit the annotation of a field."""
    origin, inside = get_origin(hint), get_args(hint)
    if hint is Telemetry:
        return instances_of(Telemetry)
    if origin is Literal:
        return st.sampled_from(inside)
    if origin is tuple:
        return st.lists(values_of(inside[0]), max_size=3).map(tuple)
    if origin is Mapping:
        return st.dictionaries(values_of(inside[0]), values_of(inside[1]), max_size=3)
    if inside:
        return st.one_of(*map(values_of, inside))
    return {float: FINITE, int: WHOLE, bool: st.booleans(), str: st.text(), type(None): st.none()}[hint]


def instances_of(kind: type[Any]) -> st.SearchStrategy[Any]:
    hints = typing.get_type_hints(kind)
    return st.builds(kind, **{f.name: values_of(hints[f.name]) for f in dataclasses.fields(kind)})


MESSAGES = st.sampled_from(sorted(KINDS)).flatmap(lambda name: instances_of(KINDS[name]))


def refused(message: object) -> str:
    with pytest.raises(ProtocolError) as refusal:
        from_wire(message)
    line = str(refusal.value)
    assert line
    assert len(line.splitlines()) == 1
    assert len(line) < 250
    return line


def test_all_events_and_actions_are_known() -> None:
    assert {kind.__base__ for kind in KINDS.values()} == {Event, Action}
    assert {"TelemetryArrived", "AlertRaised", "RaiseAlert", "RunEnded", "PartDisabled"} <= KINDS.keys()


@given(MESSAGES)
def test_round_trip(message: Event | Action) -> None:
    assert from_wire(to_wire(message)) == message


@given(MESSAGES)
def test_round_trip_through_dasks_serialisation(message: Event | Action) -> None:
    sent = b"".join(map(bytes, serialize_bytelist(to_wire(message))))
    assert from_wire(deserialize_bytes(sent)) == message


@given(instances_of(Telemetry))
def test_telemetry_round_trip_leaves_absent_readings_out(telemetry: Telemetry) -> None:
    wire = telemetry.to_wire()
    assert None not in wire.values()
    assert Telemetry.from_wire(wire) == telemetry


@given(MESSAGES, st.dictionaries(st.text(), WIRE, max_size=3))
def test_unknown_fields_are_ignored(message: Event | Action, more: dict[str, Any]) -> None:
    assert from_wire({**more, **to_wire(message)}) == message


@given(MESSAGES, st.data())
def test_a_missing_field_is_refused_and_named(message: Event | Action, data: st.DataObject) -> None:
    required = [
        f.name
        for f in dataclasses.fields(message)
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    wire = to_wire(message)
    gone = data.draw(st.sampled_from(required))
    del wire[gone]
    assert refused(wire) == f"{type(message).__name__}.{gone} is missing"


@given(WIRE)
def test_what_is_no_message_is_refused(message: object) -> None:
    refused(message)


@given(MESSAGES, st.data())
def test_damage_is_refused_or_harmless(message: Event | Action, data: st.DataObject) -> None:
    wire = to_wire(message)
    wire[data.draw(st.sampled_from(sorted(wire)))] = data.draw(WIRE)
    try:
        read = from_wire(wire)
    except ProtocolError as refusal:
        assert len(str(refusal).splitlines()) == 1  # noqa: PT017 — both outcomes are fine, other exceptions are not
    else:
        assert type(read) is KINDS[wire["type"]]
        assert from_wire(to_wire(read)) == read


@given(WIRE)
def test_malformed_telemetry_is_refused(message: object) -> None:
    with pytest.raises(ProtocolError, match=r"^telemetry[^\n]*$"):
        Telemetry.from_wire(message)


@pytest.mark.parametrize(
    ("reading", "value"),
    [
        ("host_cpu_percent", float("nan")),
        ("host_cpu_percent", float("inf")),
        ("host_cpu_percent", 10**400),
        ("host_cpu_percent", True),
        ("host_cpu_percent", "90"),
        ("host_cpu_percent", None),
        ("worker_memory_bytes", 0.5),
        ("worker_memory_limit_bytes", [1]),
        ("taken_at_s", "now\nand then"),
    ],
)
def test_a_reading_that_is_no_number_is_refused_and_named(reading: str, value: object) -> None:
    with pytest.raises(ProtocolError, match=rf"^telemetry: {reading} is [^\n]*, must be a (finite|whole) number$"):
        Telemetry.from_wire({"taken_at_s": 1.0, reading: value})


def test_telemetry_without_a_time_is_refused() -> None:
    with pytest.raises(ProtocolError, match="taken_at_s is missing"):
        Telemetry.from_wire({"host_cpu_percent": 1.0})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"schema": SCHEMA_VERSION + 1}, f"message has schema {SCHEMA_VERSION + 1}, this swarm reads {SCHEMA_VERSION}"),
        ({"schema": None}, f"message has schema None, this swarm reads {SCHEMA_VERSION}"),
        ({"type": "WorkerExploded"}, "message type 'WorkerExploded' is not known"),
        ({"type": ["WorkerJoined"]}, "message type ['WorkerJoined'] is not known"),
        ({"threads": "two"}, "WorkerJoined.threads is 'two', must be a whole number"),
        ({"threads": True}, "WorkerJoined.threads is True, must be a whole number"),
        ({"at_s": float("nan")}, "WorkerJoined.at_s is nan, must be a finite number"),
        ({"has_agents": 1}, "WorkerJoined.has_agents is 1, must be bool"),
        ({"name": None}, "WorkerJoined.name is None, must be str"),
    ],
)
def test_the_refusal_says_what_is_wrong(changes: dict[str, Any], said: str) -> None:
    assert refused({**to_wire(worker_joined()), **changes}) == said


def test_a_long_value_is_cut_in_the_refusal() -> None:
    refused({**to_wire(worker_joined()), "threads": "x" * 10_000})
    refused({"type": "x" * 10_000, "schema": SCHEMA_VERSION})


def test_the_inside_of_collections_is_checked() -> None:
    started = {"type": "AgentStarted", "schema": SCHEMA_VERSION, "at_s": 1.0, "worker": "w", "version": "1"}
    refused({**started, "agents": ["resource", 3]})
    refused({**started, "agents": ["resource"], "absent": {"temperature": 5}})
    refused({**started, "agents": "resource"})


def test_memory_in_per_cent_needs_a_limit() -> None:
    assert arrived(memory_percent=50.0).telemetry.worker_memory_percent == 50.0
    assert arrived(worker_memory_bytes=5).telemetry.worker_memory_percent is None
    assert arrived(worker_memory_bytes=5, worker_memory_limit_bytes=0).telemetry.worker_memory_percent is None
