"""`swarm.config`: what is allowed, which layer wins, and errors in one line."""

from __future__ import annotations

from typing import Any

import msgpack  # type: ignore[import-untyped] # ships no types
import pytest
from dask.utils import parse_bytes, parse_timedelta
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from swarm.config import DEFAULTS, Layer, Settings, conflict_error, conflicts, one_line, resolve
from swarm.errors import SettingsConflictError, SettingsError

FILE = "file swarm_config.json"
TOP = (
    "max_agents, channel_size, shared_memory, channel_encryption, monitoring_interval, optimization_interval, "
    "fault_tolerance, load_balancing, auto_scaling, state_directory, result_store, result_quota, tune_when_idle, "
    "task_timeout, task_retries, task_backoff, suspicion_phi, silence_patience, notice_period, notice_source, "
    "performance_thresholds"
)
BYTES = 'a whole number from 4096 to 1073741824 (bytes, or text such as "1MiB")'
SECONDS = 'a number from 0.05 to 3600 (seconds, or text such as "500ms")'
TIMEOUT = 'a number from 0.05 to 2592000 (seconds, or text such as "30s"), or null for none'
GROUP = "cpu_critical, memory_critical, thermal_critical"

VALUES: dict[str, st.SearchStrategy[Any]] = {
    "max_agents": st.integers(1, 4096),
    "channel_size": st.integers(4096, 2**30),
    "shared_memory": st.booleans(),
    "channel_encryption": st.booleans(),
    "monitoring_interval": st.floats(0.05, 3600),
    "optimization_interval": st.floats(0.05, 3600),
    "fault_tolerance": st.booleans(),
    "load_balancing": st.booleans(),
    "auto_scaling": st.booleans(),
    "result_store": st.none() | st.sampled_from(["/var/lib/results", "s3://bucket/results"]),
    "result_quota": st.integers(10**6, 10**15),
    "state_directory": st.none() | st.sampled_from(["/var/lib/swarm", "~/my state", "Zustände"]),
    "tune_when_idle": st.booleans(),
    "task_timeout": st.none() | st.floats(0.05, 2_592_000),
    "task_retries": st.integers(0, 100),
    "task_backoff": st.floats(0, 3600),
    "suspicion_phi": st.floats(1, 100),
    "silence_patience": st.floats(0.05, 3600),
    "notice_period": st.floats(0, 3600),
    "notice_source": st.none() | st.just("/run/notice"),
    "performance_thresholds.cpu_critical": st.floats(1, 100),
    "performance_thresholds.memory_critical": st.floats(1, 100),
    "performance_thresholds.thermal_critical": st.floats(20, 150),
}


def one(values: Any, name: str = FILE) -> dict[str, Any]:
    return resolve([Layer(name, values)]).explicit


def error(values: Any, name: str = FILE) -> str:
    with pytest.raises(SettingsError) as caught:
        one(values, name)
    return str(caught.value)


def test_defaults() -> None:
    resolved = resolve([])
    assert resolved.settings.model_dump() == {
        "max_agents": 32,
        "channel_size": 1048576,
        "shared_memory": True,
        "channel_encryption": False,
        "monitoring_interval": 1.0,
        "optimization_interval": 5.0,
        "fault_tolerance": True,
        "load_balancing": True,
        "auto_scaling": True,
        "state_directory": None,
        "result_store": None,
        "result_quota": 20_000_000_000,
        "tune_when_idle": False,
        "task_timeout": None,
        "task_retries": 3,
        "task_backoff": 1.0,
        "suspicion_phi": 8.0,
        "silence_patience": 20.0,
        "notice_period": 20.0,
        "notice_source": None,
        "performance_thresholds": {"cpu_critical": 90, "memory_critical": 95, "thermal_critical": 85},
    }
    assert resolved.explicit == {}
    assert resolved.origin == dict.fromkeys(VALUES, "built-in default")


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Settings().max_agents = 3


@pytest.mark.parametrize(
    "values",
    [
        {"performance_thresholds": {"cpu_critical": 80}},
        {"performance-thresholds": {"cpu-critical": 80}},
        {"performance-thresholds": {"cpu_critical": 80}},
        {"performance_thresholds.cpu-critical": 80},
    ],
)
def test_all_spellings_of_a_key(values: Any) -> None:
    assert one(values) == {"performance_thresholds.cpu_critical": 80.0}


@pytest.mark.parametrize("empty", [None, {}, {"performance_thresholds": None}, {"performance-thresholds": {}}])
def test_a_layer_may_be_empty(empty: Any) -> None:
    assert one(empty) == {}


def test_each_key_is_decided_by_itself_and_knows_its_origin() -> None:
    resolved = resolve(
        [
            Layer("a", {"max_agents": 8, "performance_thresholds": {"cpu_critical": 70, "memory_critical": 71}}),
            Layer("b", {"performance-thresholds": {"cpu-critical": 60}, "auto-scaling": False}),
        ]
    )
    thresholds = resolved.settings.performance_thresholds
    assert (thresholds.cpu_critical, thresholds.memory_critical, thresholds.thermal_critical) == (60, 71, 85)
    assert resolved.origin["max_agents"] == resolved.origin["performance_thresholds.memory_critical"] == "a"
    assert resolved.origin["performance_thresholds.cpu_critical"] == resolved.origin["auto_scaling"] == "b"
    assert resolved.explicit == {
        "max_agents": 8,
        "auto_scaling": False,
        "performance_thresholds.cpu_critical": 60.0,
        "performance_thresholds.memory_critical": 71.0,
    }


def test_a_default_that_is_written_down_is_explicit() -> None:
    assert one({"max_agents": 32}) == {"max_agents": 32}


@pytest.mark.parametrize("text", ["4096", "5 kB", "5.5KB", "1MiB", "2 mib", "1gib", "0.5 GB"])
def test_sizes_read_as_dask_reads_them(text: str) -> None:
    assert one({"channel_size": text}) == {"channel_size": parse_bytes(text)}


@pytest.mark.parametrize("text", ["1", "500ms", "500 MS", "1.5s", "2m", "1h", "0.05 s"])
def test_durations_read_as_dask_reads_them(text: str) -> None:
    assert one({"monitoring_interval": text}) == {"monitoring_interval": pytest.approx(parse_timedelta(text))}


@pytest.mark.parametrize(
    ("key", "wrong", "shown", "allowed"),
    [
        ("max_agents", "many", '"many"', "a whole number from 1 to 4096"),
        ("max_agents", "16", '"16"', "a whole number from 1 to 4096"),
        ("max_agents", 0, "0", "a whole number from 1 to 4096"),
        ("max_agents", 4097, "4097", "a whole number from 1 to 4096"),
        ("max_agents", 8.0, "8.0", "a whole number from 1 to 4096"),
        ("max_agents", True, "true", "a whole number from 1 to 4096"),
        ("max_agents", None, "null", "a whole number from 1 to 4096"),
        ("max_agents", {}, "{}", "a whole number from 1 to 4096"),
        ("max_agents", [8], "[8]", "a whole number from 1 to 4096"),
        ("fault_tolerance", "yes", '"yes"', "true or false"),
        ("fault_tolerance", 1, "1", "true or false"),
        ("channel_size", 4095, "4095", BYTES),
        *(
            (
                "channel_size",
                text,
                f'"{text}"',
                BYTES,
            )
            for text in ("5 foos", "5000.5", "-1MiB", "", "MiB", "٥MiB", "9" * 30)
        ),
        *(
            ("monitoring_interval", value, shown, SECONDS)
            for value, shown in [
                (0, "0"),
                (3601, "3601"),
                (float("nan"), "nan"),
                (True, "true"),
                ("49ms", '"49ms"'),
                ("2 days", '"2 days"'),
                ("1e999", '"1e999"'),
            ]
        ),
        *(
            ("task_timeout", value, shown, TIMEOUT)
            for value, shown in [(0, "0"), ("forever", '"forever"'), (True, "true"), (1e10, "10000000000.0")]
        ),
        ("task_retries", -1, "-1", "a whole number from 0 to 100"),
        ("task_retries", 1.5, "1.5", "a whole number from 0 to 100"),
        ("task_backoff", -1, "-1", 'a number from 0 to 3600 (seconds, or text such as "500ms")'),
        *(
            ("state_directory", value, shown, "the path of a folder, or null for none")
            for value, shown in [
                ("", '""'),
                (" ", '" "'),
                (7, "7"),
                (True, "true"),
                (["a"], "['a']"),
                ("a\0b", '"a\\u0000b"'),
            ]
        ),
        ("performance_thresholds.cpu_critical", 101, "101", "a number from 1 to 100 (per cent)"),
        ("performance_thresholds.thermal_critical", 19, "19", "a number from 20 to 150 (degrees Celsius)"),
        ("performance_thresholds", 5, "5", f"a mapping with {GROUP}"),
    ],
)
def test_a_wrong_value(key: str, wrong: Any, shown: str, allowed: str) -> None:
    assert error({key: wrong}) == f"{key} = {shown} ({FILE}): must be {allowed}"


@pytest.mark.parametrize(
    ("wrong", "near", "allowed"),
    [
        ("max_agent", "max_agents", TOP),
        ("maxAgents", "max_agents", TOP),
        ("cpu_critical", "performance_thresholds.cpu_critical", TOP),
        ("performance_treshold", "performance_thresholds", TOP),
        ("performance_thresholds.cpu_critcal", "performance_thresholds.cpu_critical", GROUP),
        ("performance_thresholds.max_agents", "max_agents", GROUP),
        ("max_agents.max_agents", "max_agents", TOP),
        ("zzz", None, TOP),
        ("performance_thresholds.zzz", None, GROUP),
    ],
)
def test_an_unknown_key_gets_the_nearest_one(wrong: str, near: str | None, allowed: str) -> None:
    hint = f"; did you mean {near}?" if near else ""
    assert error({wrong: 80}) == f"{wrong} = 80 ({FILE}): no such setting{hint} (allowed: {allowed})"


def test_an_overridden_layer_is_checked_too() -> None:
    with pytest.raises(SettingsError, match=r'max_agents = "many" \(a\)'):
        resolve([Layer("a", {"max_agents": "many"}), Layer("b", {"max_agents": 8})])


def test_one_key_given_twice() -> None:
    twice = error({"max_agents": 8, "max-agents": 9})
    assert twice == f"max_agents ({FILE}): is given twice, as 8 and as 9; keep one"
    assert one({"max_agents": 8, "max-agents": 8}) == {"max_agents": 8}


def test_a_layer_that_is_no_mapping() -> None:
    assert error([1]) == f"{FILE}: must be a mapping of settings, is [1]"


def test_several_errors_stay_in_one_line() -> None:
    message = error(dict.fromkeys(["max_agents", "auto_scaling", "load_balancing", "channel_size", "zzz"], 0))
    assert message.count("must be") == 3
    assert message.endswith(" (and 2 more)")


def test_odd_characters_are_escaped_and_long_values_cut() -> None:
    message = error({"a\nb": "x\u2028\x85" + "y" * 500, "": 1}, name="file odd\r.json")
    assert message.startswith('a\\nb = "x\\u2028\\x85yyy')
    assert "odd\\r.json" in message
    assert '; "" = 1 (' in message
    assert "y" * 100 not in message
    assert one_line("plain – text") == "plain – text"


def test_conflicts_only_in_explicit_keys() -> None:
    theirs = resolve([Layer("a", {"max_agents": 64, "auto_scaling": False})]).settings
    assert conflicts({}, theirs) == []
    assert conflicts({"max_agents": 64, "auto_scaling": False}, theirs) == []
    found = conflicts({"max_agents": 16, "auto_scaling": False, "load_balancing": False}, theirs)
    assert [(d.key, d.mine, d.theirs) for d in found] == [("max_agents", 16, 64), ("load_balancing", False, True)]


def test_each_process_may_have_its_own_state_directory() -> None:
    assert conflicts({"state_directory": "/here"}, Settings()) == []
    assert conflicts({"state_directory": None}, Settings(state_directory="/there")) == []


def test_the_conflict_error_says_what_to_do() -> None:
    mine = resolve([Layer("file b.json", {"max_agents": 16})])
    message = conflict_error(conflicts(mine.explicit, Settings()), scheduler="tcp://10.0.0.5:8786", origin=mine.origin)
    assert isinstance(message, SettingsConflictError)
    assert str(message) == (
        "settings differ: max_agents is 16 (file b.json) here and 32 on the scheduler tcp://10.0.0.5:8786; start "
        "both with the same swarm_config, or leave the key out here (unset keys follow the scheduler)"
    )


def test_the_scheduler_names_the_worker_and_keys_that_it_does_not_know() -> None:
    found = conflicts({"max_agents": 16, "later_key": True}, Settings())
    assert str(conflict_error(found, scheduler="tcp://s:1", where="on worker tcp://w:2")) == (
        "settings differ: max_agents is 16 on worker tcp://w:2 and 32 on the scheduler tcp://s:1, later_key is "
        "true on worker tcp://w:2 and not known on the scheduler tcp://s:1; start both with the same swarm_config, "
        "or leave the key out on worker tcp://w:2 (unset keys follow the scheduler)"
    )


LAYERS = st.lists(st.fixed_dictionaries({}, optional=VALUES), max_size=5)


@settings(derandomize=True, deadline=None)
@given(LAYERS)
def test_the_strongest_layer_that_has_a_key_wins(layers: list[dict[str, Any]]) -> None:
    resolved = resolve([Layer(str(i), values) for i, values in enumerate(layers)])
    flat = resolved.settings.flat()
    for key, default in DEFAULTS.items():
        holders = [i for i, values in enumerate(layers) if key in values]
        assert flat[key] == (layers[holders[-1]][key] if holders else default)
        assert resolved.origin[key] == (str(holders[-1]) if holders else "built-in default")
        assert (key in resolved.explicit) == bool(holders)
    assert resolved.explicit.items() <= flat.items()
    assert msgpack.unpackb(msgpack.packb(resolved.explicit)) == resolved.explicit
    assert conflicts(resolved.explicit, resolved.settings) == []
    assert resolve([Layer("scheduler", flat)]).settings == resolved.settings


NAMES = st.sampled_from([*VALUES, "performance_thresholds", "performance-thresholds", "cpu-critical"]) | st.text()
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
)


@settings(derandomize=True, deadline=None)
@given(st.lists(st.dictionaries(NAMES, JSON, min_size=1) | JSON, max_size=3), st.text())
def test_whatever_json_says_the_error_is_one_line(documents: list[Any], name: str) -> None:
    message = ""
    try:
        resolve([Layer(name, document) for document in documents])
    except SettingsError as wrong:
        message = str(wrong)
    assert message.isprintable()
    assert len(message.splitlines()) <= 1
