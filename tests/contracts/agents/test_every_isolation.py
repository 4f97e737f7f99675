"""What holds for an agent wherever its code runs: on the loop of its host, in a thread, in a process of its own."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import psutil
import pytest

from swarm.agents.base import Isolation
from swarm.agents.life import charge, nursery
from swarm.agents.life.lifecycle import RestartRule
from swarm.agents.life.supervisor import Supervisor
from swarm.agents.spec import AgentSpec, Limits
from swarm.channels.messages import Message, Priority, encode
from swarm.config import Settings
from swarm.errors import (
    AgentDefinitionError,
    AgentExistsError,
    AgentFailedError,
    UnknownAgentError,
)
from tests.support.agents_on_trial import Holder, Plain, Trial
from tests.support.local_voice import LocalVoice
from tests.support.processes import is_alive
from tests.support.waiting import eventually

BACK_WITHIN_S = 2.0
"""From a crash to running again: the goal."""
CAPACITY_BYTES = 4096


class Scene:
    """A supervisor and its agents."""

    def __init__(self, isolation: Isolation, folder: Path) -> None:
        self.isolation = isolation
        self.diary_file = folder / "diary"
        self.gate = folder / "gate"
        self.voice = LocalVoice()
        self.events: list[tuple[str, dict[str, Any], float]] = []
        self.audited: list[tuple[str, dict[str, Any]]] = []
        self.supervisor = Supervisor(
            self.voice,
            Settings(optimization_interval=0.05),
            on_event=lambda name, details: self.events.append((name, details, time.monotonic())),
            audit=lambda what, **details: self.audited.append((what, details)),
            rule=RestartRule(first_pause_s=0.05, failures=3),
            mailbox_bytes=CAPACITY_BYTES,
        )
        self.voice.supervisor = self.supervisor

    def spec(self, agent_id: str = "a", **parameters: Any) -> AgentSpec:
        about = {"diary": str(self.diary_file), "gate": str(self.gate)}
        spec = {key: parameters.pop(key) for key in list(parameters) if key in AgentSpec.__slots__}
        spec.setdefault("cycle_timeout_s", 5.0)
        return AgentSpec(Trial, agent_id, options={**about, **parameters}, isolation=self.isolation, **spec)

    async def create(self, agent_id: str = "a", **parameters: Any) -> None:
        await self.supervisor.create(self.spec(agent_id, **parameters))

    def status(self, agent_id: str = "a") -> dict[str, Any]:
        return next(about for about in self.supervisor.status() if about["id"] == agent_id)

    def diary(self) -> list[str]:
        return self.diary_file.read_text().split()

    def names(self) -> list[str]:
        return [name for name, _, _ in self.events]

    async def event(self, name: str, timeout_s: float = 10.0) -> dict[str, Any]:
        await eventually(lambda: name in self.names(), f"{name} after {self.events}", timeout_s)
        return next(details for told, details, _ in self.events if told == name)

    def when(self, name: str) -> float:
        return next(when_s for told, _, when_s in self.events if told == name)


@pytest.fixture(params=["loop", "thread", "process", "process without a nursery"])
async def scene(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Scene]:
    if request.param == "process without a nursery":
        monkeypatch.setattr(nursery, "_can_fork", lambda: False)
    scene = Scene(cast("Isolation", request.param.partition(" ")[0]), tmp_path)
    yield scene
    scene.gate.touch()
    await scene.supervisor.close()
    assert scene.supervisor.status() == []


def only(*isolations: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("scene", isolations, indirect=True)


# -- birth ------------------------------------------------------------------------------------------------------------


async def test_it_runs_when_create_returns(scene: Scene) -> None:
    await scene.create()
    about = scene.status()
    assert (about["state"], about["isolation"], about["restarts"]) == ("running", scene.isolation, 0)
    assert scene.names() == ["started"]
    assert scene.diary() == ["setup"]


async def test_its_cycles_go_on(scene: Scene) -> None:
    await scene.create()
    await eventually(lambda: scene.status()["cycles"] >= 3, "three cycles")
    about = scene.status()
    assert 0 < about["cycle_p50_ms"] <= about["cycle_p99_ms"]
    await eventually(lambda: scene.status()["cpu_s"] > 0, "its CPU is known")


async def test_it_optimizes_between_its_cycles(scene: Scene) -> None:
    await scene.create()
    deadline_s = time.monotonic() + 10
    while await scene.voice.ask("a", "optimized") < 2:
        assert time.monotonic() < deadline_s


async def test_an_id_is_given_once(scene: Scene) -> None:
    await scene.create()
    with pytest.raises(AgentExistsError, match=r"an agent a already \(running\); destroy it first"):
        await scene.create()
    assert scene.status()["state"] == "running"


@pytest.mark.parametrize("how", ["raise", "exit"])
async def test_a_setup_that_fails_is_told_to_who_creates_it(scene: Scene, how: str) -> None:
    with pytest.raises(AgentFailedError, match=r"agent a did not start: .*(on purpose|sys\.exit\(3\))"):
        await scene.create(setup_how=how)
    assert "a" not in scene.supervisor
    assert scene.diary() == ["setup"]
    await scene.create()


async def test_a_constructor_that_raises_is_told_to_who_creates_it(scene: Scene) -> None:
    spec = scene.spec()
    object.__setattr__(spec, "agent_id", "not a name")  # gets past the spec, not past the agent
    with pytest.raises(AgentFailedError, match="id of an agent is 'not a name'"):
        await scene.supervisor.create(spec)


async def test_a_setup_that_never_returns(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(charge, "START_S", 1.5)
    with pytest.raises(AgentFailedError, match=r"did not start within 1.5 s"):
        await scene.create(setup_how="hang")


async def test_it_can_be_given_the_state_of_another_life(scene: Scene) -> None:
    await scene.create(state={"cycles": 100, "notes": ["old"]})
    assert await scene.voice.ask("a", "notes") == ["old"]
    assert scene.diary() == ["restore", "setup"]


# -- death ------------------------------------------------------------------------------------------------------------


async def test_teardown_is_called_once(scene: Scene) -> None:
    await scene.create()
    await asyncio.gather(*(scene.supervisor.destroy("a") for _ in range(3)))
    assert scene.diary() == ["setup", "teardown"]
    assert scene.names() == ["started", "stopped"]
    with pytest.raises(UnknownAgentError):
        await scene.supervisor.destroy("a")


async def test_a_teardown_that_raises_ends_it_all_the_same(scene: Scene) -> None:
    await scene.create(teardown_how="raise")
    await scene.supervisor.destroy("a")
    assert "a" not in scene.supervisor


async def test_a_teardown_that_never_returns_is_not_waited_for(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("isolation_loop", "isolation_thread", "isolation_process"):
        monkeypatch.setattr(f"swarm.agents.life.{module}.TEARDOWN_S", 0.2)
    await scene.create(teardown_how="hang")
    await scene.supervisor.destroy("a")
    assert "a" not in scene.supervisor


async def test_it_is_destroyed_while_it_starts(scene: Scene) -> None:
    creating = asyncio.create_task(scene.create(slow_setup_s=60))
    await eventually(scene.diary_file.exists, "its setup has begun")
    await scene.supervisor.destroy("a")
    with pytest.raises(AgentFailedError, match="was destroyed while it started"):
        await creating
    assert "a" not in scene.supervisor
    assert scene.diary() == ["setup"]


async def test_it_is_destroyed_before_it_could_start(scene: Scene) -> None:
    creating = asyncio.create_task(scene.create())
    await asyncio.sleep(0)
    await scene.supervisor.destroy("a")
    with pytest.raises(AgentFailedError, match="was destroyed while it started"):
        await creating


async def test_who_creates_it_loses_patience(scene: Scene) -> None:
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(scene.create(slow_setup_s=60), 0.5)
    assert "a" not in scene.supervisor


async def test_it_is_destroyed_while_it_waits_to_be_started_again(scene: Scene) -> None:
    scene.supervisor._rule = RestartRule(first_pause_s=60, longest_pause_s=60)
    await scene.create(fails_at=2)
    await scene.event("degraded")
    assert scene.status()["state"] == "degraded"
    await scene.supervisor.destroy("a")
    assert scene.names() == ["started", "degraded", "stopped"]


# -- faults -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scene", "how"),
    [
        *((isolation, how) for isolation in ("loop", "thread", "process") for how in ("raise", "exit", "hang")),
        *((isolation, "block") for isolation in ("thread", "process")),
        *(("process", how) for how in ("kill", "vanish", "segfault", "stop", "burn")),
    ],
    indirect=["scene"],
)
async def test_a_cycle_that_goes_wrong_and_the_agent_is_back_with_its_state(scene: Scene, how: str) -> None:
    late = how in ("hang", "block", "stop", "burn")
    await scene.create(fails_at=4, how=how, cycle_timeout_s=0.5 if late else 5.0)
    assert await scene.voice.ask("a", "note", "kept") == 1
    await scene.event("restarted")
    assert scene.when("restarted") - scene.when("degraded") <= BACK_WITHIN_S
    assert await scene.voice.ask("a", "notes") == ["kept"]
    assert await scene.voice.ask("a", "cycles") >= 3
    about = scene.status()
    assert (about["state"], about["restarts"], about["failures_in_a_row"]) == ("running", 1, 1)
    assert about["last_error"] == (await scene.event("degraded"))["reason"]
    told = {
        "raise": "RuntimeError: on purpose",
        "exit": "AgentFailedError: it called sys.exit(3)",
        "kill": "its process ended with signal SIGKILL (somebody killed it, or the kernel did as memory ran out)",
        "vanish": "its process ended with exit code 7",
        "segfault": "its process ended with signal SIGSEGV (Fatal Python error: Segmentation fault)",
    }
    assert about["last_error"] == told.get(how, "a cycle took longer than 0.5 s")
    expected = ["setup", "teardown", "restore", "setup"]
    if how in ("block", "kill", "vanish", "segfault", "stop", "burn"):
        expected.remove("teardown")
    assert scene.diary() == expected


async def test_one_that_always_fails_is_given_up_for_all_to_see(scene: Scene) -> None:
    await scene.create(fails_at=2)
    await scene.create("b", fails_at=0)
    await eventually(lambda: scene.status("b")["state"] == "failed", "it is given up")
    mine = [name for name, details, _ in scene.events if details["agent"] == "b"]
    assert mine == ["started", "degraded", "restarted", "degraded", "restarted", "failed"]
    assert (await scene.event("failed"))["reason"] == "RuntimeError: on purpose"
    with pytest.raises(AgentFailedError, match="agent b was given up: RuntimeError: on purpose"):
        await scene.voice.ask("b", "notes")
    await scene.event("restarted")
    await eventually(lambda: scene.status()["state"] == "running", "the other one lives")
    await scene.supervisor.destroy("b")
    await scene.create("b")


@only("thread")
async def test_one_that_waits_forever_for_a_lock_is_replaced_and_its_thread_is_told(scene: Scene) -> None:
    await scene.create(fails_at=2, how="block", cycle_timeout_s=0.3)
    degraded = await scene.event("degraded")
    assert degraded["action"].endswith("was left behind")
    await scene.event("restarted")
    assert scene.status()["threads_left"] == 1
    scene.gate.touch()
    await eventually(lambda: scene.status()["threads_left"] == 0, "it ends by itself when its code returns")
    assert scene.diary() == ["setup", "restore", "setup", "teardown"]
    assert scene.status()["state"] == "running"


@only("thread")
async def test_one_that_leaves_thread_after_thread_behind_is_given_up(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(charge, "THREADS_LEFT", 1)
    monkeypatch.setattr("swarm.agents.life.isolation_thread.CANCEL_S", 0.05)
    scene.supervisor._rule = RestartRule(first_pause_s=0.01, failures=100)
    await scene.create(fails_at=0, how="block", cycle_timeout_s=0.1)
    await scene.event("failed")
    assert scene.status()["threads_left"] == 2


# -- messages ---------------------------------------------------------------------------------------------------------


async def test_messages_are_answered_in_order(scene: Scene) -> None:
    await scene.create()
    answers = await asyncio.gather(*(scene.voice.ask("a", "note", n) for n in range(50)))
    assert answers == list(range(1, 51))
    assert await scene.voice.ask("a", "notes") == list(range(50))
    await eventually(lambda: scene.status()["messages_handled"] == 51, "all are counted")


async def test_no_message_is_handled_during_a_cycle(scene: Scene) -> None:
    await scene.create(cycle_s=0.03)
    for n in range(20):
        await scene.voice.ask("a", "note", n)  # the agent asserts it
        await asyncio.sleep(0.007)
    assert scene.status()["messages_failed"] == 0


async def test_one_whose_cycles_never_pause_still_reads_its_messages(scene: Scene) -> None:
    await scene.create(cycle_s=0.1)  # twice its interval
    for n in range(5):
        assert await scene.voice.ask("a", "note", n) == n + 1
    assert scene.status()["cycles"] >= 3


async def test_the_most_urgent_is_read_first(scene: Scene) -> None:
    await scene.create()
    nap = asyncio.create_task(scene.voice.ask("a", "nap", 0.4))
    await eventually(lambda: scene.supervisor._charges["a"].post._hand is not None, "it naps")
    for priority in reversed(Priority):
        await scene.voice.tell("a", "note", int(priority), priority)
    await nap
    await eventually(lambda: scene.status()["messages_handled"] == 5, "all are read")
    assert await scene.voice.ask("a", "notes") == [0, 1, 2, 3]


async def test_a_full_mailbox_is_told_and_room_is_waited_for(scene: Scene) -> None:
    await scene.create()
    nap = asyncio.create_task(scene.voice.ask("a", "nap", 0.5))
    await eventually(lambda: scene.supervisor._charges["a"].post._hand is not None, "it naps")
    frame = encode(Message("test", "a", "note", b"x" * 500))
    sent = 0
    while scene.supervisor.deliver("a", frame, Priority.NORMAL):
        sent += 1
    assert sent == CAPACITY_BYTES // (len(frame) + 64)
    assert scene.status()["mailbox_fill_ratio"] > 0.8
    assert scene.supervisor.deliver("a", frame, Priority.LOW)  # each priority has room of its own
    assert not await scene.supervisor.room("a", Priority.NORMAL, 0.05)
    assert await scene.supervisor.room("a", Priority.NORMAL, 10.0)
    assert scene.supervisor.deliver("a", frame, Priority.NORMAL)
    await nap
    await eventually(lambda: scene.status()["messages_handled"] == sent + 3, "all are read")


async def test_senders_who_wait_for_room_hear_of_the_end(scene: Scene) -> None:
    await scene.create()
    nap = asyncio.create_task(scene.voice.ask("a", "nap", 1.0))
    await eventually(lambda: scene.supervisor._charges["a"].post._hand is not None, "it naps")
    while scene.supervisor.deliver("a", encode(Message("test", "a", "note", b"x" * 500)), Priority.NORMAL):
        pass
    waits = asyncio.create_task(scene.voice.tell("a", "note", b"x" * 500))
    await asyncio.sleep(0.05)
    await scene.supervisor.destroy("a")
    with pytest.raises(UnknownAgentError):
        await waits
    await asyncio.gather(nap, return_exceptions=True)


async def test_who_waits_in_the_mailbox_of_one_that_is_destroyed_is_told(scene: Scene) -> None:
    await scene.create()
    nap = asyncio.create_task(scene.voice.ask("a", "nap", 0.3))
    await eventually(lambda: scene.supervisor._charges["a"].post._hand is not None, "it naps")
    waits = asyncio.create_task(scene.voice.ask("a", "notes"))
    await asyncio.sleep(0)
    await scene.supervisor.destroy("a")
    with pytest.raises(AgentFailedError, match="agent a was destroyed"):
        await waits
    assert await nap is None  # it was under way, and came to its end


async def test_a_message_that_can_not_be_handled_goes_to_who_asked(scene: Scene) -> None:
    await scene.create()
    with pytest.raises(AgentFailedError, match="RuntimeError: on purpose"):
        await scene.voice.ask("a", "raise")
    with pytest.raises(AgentFailedError, match=r"sys\.exit\(3\)"):
        await scene.voice.ask("a", "exit")
    with pytest.raises(AgentFailedError, match="MessageError: payload of answer from a to test can't be sent"):
        await scene.voice.ask("a", "odd")
    assert scene.supervisor.deliver("a", b"garbage", Priority.NORMAL)
    assert await scene.voice.ask("a", "note") == 1
    await eventually(lambda: scene.status()["messages_handled"] == 1, "it is counted, which is after it is answered")
    about = scene.status()
    assert (about["state"], about["messages_failed"]) == ("running", 4)
    assert "message failed: MessageError" in about["last_error"]


@pytest.mark.parametrize(
    ("scene", "how"),
    [("loop", "hang"), ("thread", "hang"), ("process", "hang"), ("process", "kill")],
    indirect=["scene"],
)
async def test_a_message_that_ends_its_life_is_not_read_again(scene: Scene, how: str) -> None:
    await scene.create(cycle_timeout_s=0.5)
    asked = asyncio.create_task(scene.voice.ask("a", how))
    after = [asyncio.create_task(scene.voice.ask("a", "note", n)) for n in range(3)]
    with pytest.raises(AgentFailedError, match="agent a failed while it handled this: "):
        await asked
    assert await asyncio.gather(*after) == [1, 2, 3]
    assert scene.status()["restarts"] == 1


@pytest.mark.parametrize(
    ("scene", "how"),
    [("loop", "raise"), ("thread", "raise"), ("process", "raise"), ("process", "kill")],
    indirect=["scene"],
)
async def test_no_message_is_lost_or_read_twice_when_its_cycles_fail(scene: Scene, how: str) -> None:
    scene.supervisor._rule = RestartRule(first_pause_s=0.01, failures=100)
    await scene.create(fails_at=3, how=how, cycle_s=0.02)
    for n in range(40):
        await scene.voice.ask("a", "note", n)
        await asyncio.sleep(0.005)
    assert await scene.voice.ask("a", "notes") == list(range(40))
    assert scene.status()["restarts"] == 1


async def test_agents_ask_each_other(scene: Scene) -> None:
    await scene.create("a")
    await scene.create("b", interval_s=60)
    assert await scene.voice.ask("a", "forward", {"to": "b", "kind": "note", "with": 5}) == 1
    assert await scene.voice.ask("b", "notes") == [5]
    assert await scene.voice.ask("a", "shout", "hello") == 1
    with pytest.raises(AgentFailedError, match="UnknownAgentError: there is no agent nobody here"):
        await scene.voice.ask("a", "forward", {"to": "nobody", "kind": "note"})
    with pytest.raises(AgentFailedError, match="AgentFailedError: RuntimeError: on purpose"):
        await scene.voice.ask("a", "forward", {"to": "b", "kind": "raise"})


async def test_nobody_speaks_in_the_name_of_another(scene: Scene) -> None:
    await scene.create()
    with pytest.raises(AgentFailedError, match="a can't send a message in the name of somebody_else"):
        await scene.voice.ask("a", "pretend")


async def test_what_it_changes_is_audited_under_its_name(scene: Scene) -> None:
    await scene.create()
    await scene.voice.ask("a", "audit", 3)
    await eventually(lambda: scene.audited == [("fan", {"agent": "a", "speed": 3})], "it is audited")


async def test_it_knows_the_settings(scene: Scene) -> None:
    await scene.create()
    assert await scene.voice.ask("a", "settings") == Settings().max_agents


async def test_a_message_of_five_megabytes_and_its_answer(scene: Scene) -> None:
    await scene.create(cycle_timeout_s=20.0)
    large = b"x" * 5_000_000
    assert await scene.voice.ask("a", "echo", large) == large


async def test_a_state_that_can_not_be_kept_is_a_fault(scene: Scene) -> None:
    await scene.create()
    with pytest.raises(
        AgentFailedError, match=r"agent a failed .*: state of agent a has 5\d* bytes, at most 1048576 are"
    ):
        await scene.voice.ask("a", "note", b"x" * 5_000_000)
    await scene.event("restarted")
    assert await scene.voice.ask("a", "notes") == []


# -- where it runs ----------------------------------------------------------------------------------------------------


async def test_a_thread_or_process_keeps_to_its_cores_and_its_priority(scene: Scene) -> None:
    core = max(os.sched_getaffinity(0))
    if scene.isolation == "loop":
        with pytest.raises(AgentDefinitionError, match='needs isolation="thread" or "process"'):
            scene.spec(cpu_affinity={core})
        return
    await scene.create(cpu_affinity={core}, priority=5)
    assert await scene.voice.ask("a", "cores") == [core]
    where = await scene.voice.ask("a", "where")
    assert where["nice"] == 5
    assert (where["pid"] == os.getpid()) == (scene.isolation == "thread")
    assert os.getpriority(os.PRIO_PROCESS, 0) == 0
    assert len(os.sched_getaffinity(0)) > 1 or os.cpu_count() == 1


@only("thread", "process")
async def test_cores_that_are_not_there(scene: Scene) -> None:
    with pytest.raises(AgentDefinitionError, match=r"cpu_affinity of agent a names cores \[60000\], this place has"):
        await scene.create(cpu_affinity={60000})


async def test_a_plain_cycle_runs_everywhere(scene: Scene) -> None:
    await scene.supervisor.create(AgentSpec(Plain, "p", isolation=scene.isolation))
    await eventually(lambda: scene.status("p")["cycles"] >= 3, "three cycles")
    assert await scene.voice.ask("p", "cycles") >= 3


async def test_close_ends_all(scene: Scene) -> None:
    others = {*psutil.Process().children(recursive=True)}
    for agent_id in "abc":
        await scene.create(agent_id)
    threads = [thread for thread in threading.enumerate() if thread.name.startswith("swarm-agent-")]
    children = {*psutil.Process().children(recursive=True)} - others
    assert len(threads) == (3 if scene.isolation == "thread" else 0)
    pids = {scene.status(agent_id)["pid"] for agent_id in "abc"} - {None}
    assert len(pids) == (3 if scene.isolation == "process" else 0)
    nurseries = {child for child in children if child.pid not in pids}
    assert len(children) == len(pids) + len(nurseries)
    assert len(nurseries) == (1 if scene.isolation == "process" and nursery._can_fork() else 0)
    await scene.supervisor.close()
    assert not any(thread.is_alive() for thread in threads)
    assert not any(child.is_running() for child in children)
    with pytest.raises(AgentDefinitionError, match="its place is closing"):
        await scene.create()


@only("process")
async def test_its_limit_of_memory_raises_in_it(scene: Scene) -> None:
    await scene.create(limits=Limits(memory_bytes=200 << 20))
    assert await scene.voice.ask("a", "eat", 10 << 20) == 10 << 20
    with pytest.raises(AgentFailedError, match="MemoryError"):
        await scene.voice.ask("a", "eat", 300 << 20)
    assert scene.status()["restarts"] == 0


@only("process")
async def test_its_limit_of_cpu_ends_it_and_it_is_told_so(scene: Scene) -> None:
    await scene.create(limits=Limits(cpu_s=1), fails_at=2, how="burn")
    degraded = await scene.event("degraded")
    assert degraded["reason"] == ("its process ended with signal SIGXCPU (it has used the 1 s of CPU that it may)")


@only("process")
async def test_what_it_started_goes_with_its_process(scene: Scene) -> None:
    await scene.create()
    child = psutil.Process(await scene.voice.ask("a", "breed"))
    os.kill((await scene.voice.ask("a", "where"))["pid"], signal.SIGKILL)
    await scene.event("restarted")
    assert not is_alive(child)


async def test_one_that_holds_the_loop_is_moved_to_a_thread_with_its_state(scene: Scene) -> None:
    await scene.supervisor.create(AgentSpec(Holder, "h", isolation=scene.isolation))
    await eventually(lambda: scene.status("h")["cycles"] >= 6, "six cycles")
    about = scene.status("h")
    if scene.isolation != "loop":
        assert (about["moves"], about["isolation"]) == (0, scene.isolation)
        return
    assert (about["moves"], about["isolation"], about["failures_in_a_row"]) == (1, "thread", 0)
    moved = await scene.event("moved")
    assert (moved["isolation"], moved["reason"].partition(" for ")[0]) == ("thread", "it held the event loop")
    assert await scene.voice.ask("h", "cycles") >= 6  # counted over both lives
