from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from swarm.agents.kinds import process_priority
from swarm.agents.kinds.process_priority import Priority, lowest_nice
from swarm.errors import AgentError, MessageError

pytestmark = pytest.mark.skipif(not hasattr(psutil.Process, "ionice"), reason="Linux only")


@pytest.fixture
def thread() -> Iterator[int]:
    over = threading.Event()
    one = threading.Thread(target=over.wait, args=(30,))
    one.start()
    assert one.native_id is not None
    yield one.native_id
    over.set()
    one.join()


def test_io_priority_of_all_threads_is_set_and_undone(thread: int) -> None:
    audited: list[tuple[str, dict[str, Any]]] = []
    priority = Priority(lambda what, **about: audited.append((what, about)))
    before = psutil.Process(thread).ionice()
    assert priority.set(None, "best_effort", 6) >= 2
    assert psutil.Process(thread).ionice() == (psutil.IOPRIO_CLASS_BE, 6)
    assert psutil.Process(os.getpid()).ionice() == (psutil.IOPRIO_CLASS_BE, 6)
    priority.set(None, "idle")
    assert psutil.Process(thread).ionice().ioclass == psutil.IOPRIO_CLASS_IDLE
    priority.undo()
    priority.undo()
    assert psutil.Process(thread).ionice() == before
    assert [what for what, _ in audited] == ["set_priority", "set_priority", "unset_priority"]


@pytest.mark.skipif(lowest_nice() > 0, reason="this process may not take it back")
def test_nice_of_all_threads_is_set_and_undone(thread: int) -> None:
    priority = Priority(lambda what, **about: None)
    before = os.getpriority(os.PRIO_PROCESS, thread)
    try:
        priority.set(before + 3, None)
        assert os.getpriority(os.PRIO_PROCESS, thread) == before + 3
        assert os.getpriority(os.PRIO_PROCESS, 0) == before + 3
        later = []
        one = threading.Thread(target=lambda: later.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id())))
        one.start()
        one.join()
        assert later == [before + 3]
    finally:
        priority.undo()
    assert os.getpriority(os.PRIO_PROCESS, thread) == os.getpriority(os.PRIO_PROCESS, 0) == before


def test_what_could_not_be_undone_is_not_done(monkeypatch: pytest.MonkeyPatch, thread: int) -> None:
    monkeypatch.setattr(process_priority, "lowest_nice", lambda: 20)
    before = os.getpriority(os.PRIO_PROCESS, thread)
    with pytest.raises(AgentError, match="could not go back below 20"):
        Priority(lambda what, **about: None).set(5, None)
    assert os.getpriority(os.PRIO_PROCESS, thread) == before


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ((20, None), "-20 to 19"),
        ((True, None), "-20 to 19"),
        ((None, "fast"), "best_effort"),
        ((None, "idle", 8), "to 7"),
    ],
)
def test_wrong_values_are_refused(asked: Any, said: str) -> None:
    with pytest.raises(MessageError, match=said):
        Priority(lambda what, **about: None).set(*asked)
