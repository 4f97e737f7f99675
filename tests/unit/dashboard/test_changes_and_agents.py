from __future__ import annotations

import pytest

from swarm.dashboard.view_model import ViewModel
from swarm.protocol import AgentChanged, ChangeAudited, WorkerDied


def changed(state: str, kind: str = "", place: str = "", at_s: float = 1.0) -> AgentChanged:
    return AgentChanged(at_s=at_s, agent="mine", kind=kind, place=place, state=state, reason="", restarts=0)


def test_what_a_change_does_not_say_of_an_agent_is_as_before() -> None:
    view = ViewModel()
    view.apply(changed("running", "compute", "tcp://a:1"))
    view.apply(changed("lost", at_s=2.0))
    (row,) = view.agents()
    assert (row.kind, row.place, row.state, row.since_s) == ("compute", "tcp://a:1", "lost", 2.0)


@pytest.mark.parametrize(
    ("details", "words"),
    [
        ({}, ""),
        ({"knob": "gc", "before": "as it was", "after": "calm"}, "knob gc, as it was → calm"),
        ({"before": 0.8, "now": 0.71234, "left_s": 3.0}, "left 3 s, 0.8 → 0.712"),
        ({"thread": 12, "cores": "0", "before": "0,1"}, "thread 12, cores 0, was 0,1"),
        ({"cores": 0, "after": 0}, "cores 0, → 0"),
        ({"swapped_bytes": 2048, "watts": None}, "swapped 2048 bytes, watts None"),
    ],
)
def test_details_of_a_change_in_words(details: dict[str, float | int | str | None], words: str) -> None:
    view = ViewModel()
    view.apply(ChangeAudited(at_s=1.0, place="tcp://a:1", what="pin_thread", agent="mine", details=details))
    (row,) = view.changes()
    assert (row.what, row.details) == ("pin thread", words)


def test_all_lost_workers_are_counted() -> None:
    view = ViewModel(kept=2)
    for number in range(5):
        view.apply(WorkerDied(at_s=1.0, worker=f"tcp://a:{number}", name=str(number), cause="it was ended"))
    assert (view.lost, len(view.deaths())) == (5, 2)
