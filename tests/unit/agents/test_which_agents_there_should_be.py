"""The registry: from what was asked for and the workers of the moment to what is to be started and stopped."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler_plugins.decide.agent_scale import Autoscaler
from scheduler_plugins.decide.agents import SCHEDULER, Group, Registry, Start, Worker, spread_of
from swarm.errors import AgentDefinitionError, AgentExistsError, TooManyAgentsError, UnknownAgentError


def workers(*names: str, host: str = "host", nanny: bool = False) -> list[Worker]:
    return [Worker(f"tcp://{name}:1", name, host, f"tcp://{name}:2" if nanny else "") for name in names]


def places(registry: Registry) -> dict[str, str]:
    return {member.agent: member.place for member in registry.members.values()}


@pytest.fixture
def registry() -> Registry:
    return Registry(max_agents=8)


def test_an_agent_goes_to_the_worker_with_the_fewest(registry: Registry) -> None:
    registry.add(Group("one", "custom"))
    registry.plan(workers("a", "b"))
    registry.add(Group("two", "custom"))
    assert registry.plan(workers("a", "b")).starts == (Start("two", "two", "tcp://b:1"),)


def test_an_agent_whose_worker_is_gone_is_started_elsewhere_with_its_state(registry: Registry) -> None:
    registry.add(Group("one", "custom"))
    registry.plan(workers("a"))
    registry.members["one"].kept = b"what it knew"
    plan = registry.plan(workers("b"))
    assert plan.lost == ("one",)
    assert plan.starts == (Start("one", "one", "tcp://b:1"),)
    assert (registry.members["one"].kept, registry.members["one"].moves) == (b"what it knew", 1)


def test_an_agent_of_one_worker_waits_for_that_one(registry: Registry) -> None:
    registry.add(Group("one", "custom", "worker", "b"))
    assert registry.plan(workers("a")).starts == ()
    assert registry.plan(workers("a", "b")).starts == (Start("one", "one", "tcp://b:1"),)
    assert registry.plan(workers("a")).lost == ("one",)
    assert registry.members == {}


def test_every_worker_has_one_and_so_has_who_joins(registry: Registry) -> None:
    registry.add(Group("mine", "custom", "every-worker"))
    registry.plan(workers("a", "b"))
    registry.plan(workers("a", "b", "c"))
    assert places(registry) == {"mine.a": "tcp://a:1", "mine.b": "tcp://b:1", "mine.c": "tcp://c:1"}


def test_every_host_has_one_in_a_nanny_where_it_stays(registry: Registry) -> None:
    registry.add(Group("mine", "custom", "every-host"))
    first = [*workers("a", "b", host="x", nanny=True), *workers("c", host="y")]
    registry.plan(first)
    assert places(registry) == {"mine.x": "tcp://a:2", "mine.y": "tcp://c:1"}
    registry.plan(list(reversed(first)))
    assert places(registry) == {"mine.x": "tcp://a:2", "mine.y": "tcp://c:1"}
    registry.plan(first[1:])
    assert places(registry)["mine.x"] == "tcp://b:2"


def test_an_agent_stays_in_a_nanny_that_starts_another_worker(registry: Registry) -> None:
    registry.add(Group("mine", "custom", "every-host"))
    both = workers("a", "b", nanny=True)
    registry.plan(both)
    assert registry.plan(both[1:], {"tcp://a:2": "host"}).lost == ()
    assert registry.plan([], {"tcp://a:2": "host"}).lost == ()
    assert registry.plan(both[1:]).lost == ("mine.host",)
    assert places(registry) == {"mine.host": "tcp://b:2"}


def test_an_agent_of_the_scheduler_needs_no_worker(registry: Registry) -> None:
    registry.add(Group("one", "custom", "scheduler"))
    assert registry.plan([]).starts == (Start("one", "one", SCHEDULER),)


def test_without_workers_an_agent_is_homeless_and_starts_with_the_first(registry: Registry) -> None:
    registry.add(Group("one", "custom"))
    assert registry.plan([]).homeless == ("one",)
    assert registry.plan(workers("a")).starts


def test_a_group_follows_its_target(registry: Registry) -> None:
    group = Group("many", "custom", minimum=1, maximum=3)
    registry.add(group)
    registry.plan(workers("a"))
    group.target = 3
    assert [start.agent for start in registry.plan(workers("a")).starts] == ["many.1", "many.2"]
    group.target = 2
    assert registry.plan(workers("a")).stops == (("many.2", "tcp://a:1"),)


def test_a_message_to_a_group_goes_to_its_agents_in_turn(registry: Registry) -> None:
    registry.add(Group("many", "custom", minimum=2, maximum=2))
    registry.plan(workers("a"))
    with pytest.raises(UnknownAgentError, match="no agent of 'many' runs now"):
        registry.find("many")
    for member in registry.members.values():
        member.station = "somewhere"
    assert {registry.find("many").agent for _ in range(4)} == {"many.0", "many.1"}
    assert len(registry.of_kind("custom")) == len(registry.of_kind("many")) == len(registry.of_kind("*")) == 2
    assert registry.of_kind("other") == []


def test_no_more_than_may_be(registry: Registry) -> None:
    for i in range(8):
        registry.add(Group(f"agent{i}", "custom"))
        registry.plan(workers("a"))
    with pytest.raises(TooManyAgentsError, match="no room for one: max_agents is 8, 8 are there; destroy one"):
        registry.add(Group("one", "custom"))


def test_every_worker_is_told_which_get_none() -> None:
    registry = Registry(max_agents=2)
    registry.add(Group("mine", "custom", "every-worker"))
    assert registry.plan(workers("a", "b", "c")).refused == ("mine.c",)


def test_one_id_twice(registry: Registry) -> None:
    registry.add(Group("one", "custom"))
    with pytest.raises(AgentExistsError, match="there is an agent 'one' already"):
        registry.add(Group("one", "custom"))


@pytest.mark.parametrize("name", ["client", "scheduler", "*"])
def test_names_that_others_have(registry: Registry, name: str) -> None:
    with pytest.raises(AgentDefinitionError, match="are taken"):
        registry.add(Group(name, "custom"))


def test_what_is_removed_is_stopped(registry: Registry) -> None:
    registry.add(Group("mine", "custom", "every-worker"))
    registry.plan(workers("a"))
    with pytest.raises(AgentDefinitionError, match=r"mine\.a is one of mine, which would start it again; destroy mine"):
        registry.remove("mine.a")
    registry.remove("mine")
    assert registry.plan(workers("a")).stops == (("mine.a", "tcp://a:1"),)
    with pytest.raises(UnknownAgentError, match="no agent 'mine'"):
        registry.remove("mine")


def test_an_agent_that_was_given_up_is_not_started_again(registry: Registry) -> None:
    registry.add(Group("one", "custom"))
    registry.plan(workers("a"))
    registry.failed("one", "it raises")
    assert registry.plan(workers("a")).starts == ()
    assert registry.members["one"].reason == "it raises"


@pytest.mark.parametrize(
    ("where", "meant"),
    [
        (None, ("anywhere", "")),
        ("scheduler", ("scheduler", "")),
        ("every-host", ("every-host", "")),
        ("tcp://a:1", ("worker", "tcp://a:1")),
        (3, ("worker", "3")),
    ],
)
def test_where(where: object, meant: tuple[str, str]) -> None:
    assert spread_of(where) == meant


@pytest.mark.parametrize("where", ["", "worker", True, 1.5, []])
def test_where_not(where: object) -> None:
    with pytest.raises(AgentDefinitionError, match="must be the name or address of a worker or one of anywhere"):
        spread_of(where)


@pytest.mark.parametrize(("low", "high"), [(0, 1), (2, 1), (-1, 3)])
def test_numbers_of_agents(low: int, high: int) -> None:
    with pytest.raises(AgentDefinitionError, match="must be 1 or more"):
        Group("one", "custom", minimum=low, maximum=high)


names = st.sampled_from("abcd")
steps = st.lists(
    st.one_of(
        st.tuples(
            st.just("add"),
            names,
            st.sampled_from(["anywhere", "every-worker", "every-host", "scheduler"]),
            st.integers(1, 3),
        ),
        st.tuples(st.just("remove"), names),
        st.tuples(st.just("workers"), st.sets(st.sampled_from("uvwxyz"))),
    ),
    max_size=30,
)


@given(steps)
def test_the_plan_leads_where_it_should(steps: list[tuple]) -> None:
    """After each plan the agents are at places that exist, no more than may be; a second plan has nothing to do."""
    registry, here = Registry(max_agents=6), list[Worker]()
    running: dict[str, str] = {}
    for what, *arguments in steps:
        if what == "workers":
            here = [worker for name in sorted(arguments[0]) for worker in workers(name, host=f"h{ord(name) % 2}")]
        elif what == "remove" and arguments[0] in registry.groups:
            registry.remove(arguments[0])
        elif what == "add" and arguments[0] not in registry.groups:
            name, spread, many = arguments
            high = many if spread == "anywhere" else 1
            try:
                registry.add(Group(name, "custom", spread, minimum=high, maximum=high))
            except TooManyAgentsError:
                continue
        plan = registry.plan(here)
        for agent in (*plan.lost, *(agent for agent, _ in plan.stops)):
            del running[agent]
        for start in plan.starts:
            assert start.agent not in running
            running[start.agent] = start.place
        assert running == places(registry)
        assert len(running) <= 6
        assert set(running.values()) <= {SCHEDULER, *(w.address for w in here)}
        again = registry.plan(here)
        assert (again.starts, again.stops, again.lost) == ((), (), ())


# -- following the load ------------------------------------------------------------------------------------------------


@given(st.floats(0, 8), st.integers(1, 8))
def test_a_steady_load_leads_to_a_steady_number(work: float, first: int) -> None:
    """At most one way: no agent is started and stopped again for the same load."""
    scaler, target = Autoscaler(), first
    seen = [target]
    for second in range(600):
        loads = [min(1.0, work / target)] * target
        target = scaler.look(loads, target, minimum=1, maximum=8, now_s=float(second))
        if target != seen[-1]:
            seen.append(target)
    assert seen in (sorted(seen), sorted(seen, reverse=True))
    assert work / target <= 0.75 or target == 8
    assert target == 1 or work / target >= 0.375 or target <= first


def test_a_short_peak_changes_nothing() -> None:
    scaler = Autoscaler()
    for second in range(60):
        load = 1.0 if second % 3 == 0 else 0.4
        assert scaler.look([load], 1, minimum=1, maximum=4, now_s=float(second)) == 1


def test_agents_that_still_start_are_waited_for() -> None:
    scaler = Autoscaler()
    assert [scaler.look([1.0], 2, minimum=1, maximum=4, now_s=float(t)) for t in range(10)] == [2] * 10
