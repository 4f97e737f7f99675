"""What the open pages get, without a server: sections, in-place updates, failures."""

from __future__ import annotations

import json
import logging

import pytest
from bokeh.document import Document
from bokeh.document.events import ColumnDataChangedEvent, ColumnsStreamedEvent, DocumentChangedEvent

from swarm.dashboard import views
from swarm.dashboard.board import Board
from swarm.dashboard.view_model import RatePoint, ViewModel
from tests.support.made_up_cluster import busy_cluster, joined, sampled, telemetry

NOW_S = 1_700_000_000.0


class Clock:
    def __init__(self) -> None:
        self.now_s = NOW_S

    def __call__(self) -> float:
        return self.now_s


class Opened:
    """A document as one browser would have it, and what would be sent to that browser."""

    def __init__(self, model: ViewModel) -> None:
        self.clock = Clock()
        self.board = Board(model, {"cluster": "tcp://10.0.0.1:8786", "version": "1"}, self.clock)
        self.doc = Document()
        views.build(self.doc, self.board)
        self.sent: list[DocumentChangedEvent] = []
        self.doc.on_change(self.sent.append)

    def second(self, seconds: float = 1.0) -> list[DocumentChangedEvent]:
        """Let time pass and the periodic callback run; what it sends."""
        self.clock.now_s += seconds
        self.sent.clear()
        for callback in self.doc.session_callbacks:
            callback.callback()
        return self.sent

    def section(self, name: str) -> object:
        return json.loads(self.doc.get_model_by_name("board").data[name][0])


def test_sections_that_did_not_change_are_not_sent() -> None:
    model = ViewModel()
    for event in busy_cluster(8, NOW_S):
        model.apply(event)
    page = Opened(model)
    assert page.second(0.1) == [], "within the same second and without news there is nothing to send"
    [change] = page.second()
    assert isinstance(change, ColumnDataChangedEvent)
    assert set(change.cols) == {"totals", "workers", "alerts", "runs"}
    model.apply(joined(8, NOW_S))
    assert page.second()
    assert len(page.section("workers")) == 9


def test_an_idle_page_sends_only_the_time() -> None:
    page = Opened(ViewModel())
    [change] = page.second()
    assert change.cols == ["totals"]


def test_the_chart_only_grows_at_its_end() -> None:
    model = ViewModel()
    page = Opened(model)
    for i in range(3):
        model.apply(sampled(NOW_S + i, 10 * i))
    [streamed] = [event for event in page.second() if isinstance(event, ColumnsStreamedEvent)]
    assert streamed.data == {"at_ms": [1000 * (NOW_S + 1), 1000 * (NOW_S + 2)], "tasks_per_s": [10.0, 10.0]}
    assert not [event for event in page.second() if isinstance(event, ColumnsStreamedEvent)]


class Moody(ViewModel):
    """A view model that can be told to fail."""

    fails = False

    def state(self, now_s: float) -> dict[str, object]:
        if self.fails:
            raise ZeroDivisionError("on purpose")
        return super().state(now_s)

    def rates(self, after_s: float = 0.0) -> list[RatePoint]:
        if self.fails:
            raise KeyError("rates")
        return super().rates(after_s)


def test_a_failure_is_shown_and_logged_once_and_goes_away(caplog: pytest.LogCaptureFixture) -> None:
    model = Moody()
    model.apply(joined(0, NOW_S))
    page = Opened(model)
    model.fails = True
    with caplog.at_level(logging.ERROR, logger="swarm.dashboard"):
        for _ in range(3):
            page.second()
    assert [record.args[:2] for record in caplog.records] == [
        ("state", "ZeroDivisionError: on purpose"),
        ("rates", "KeyError: 'rates'"),
    ]
    assert page.section("failure") == "ZeroDivisionError: on purpose; KeyError: 'rates'"
    assert len(page.section("workers")) == 1, "the last good values stay"
    model.fails = False
    page.second(), page.second()
    assert page.section("failure") == ""


def test_a_reading_that_is_not_a_number_is_a_failure_too_not_broken_json() -> None:
    model = ViewModel()
    page = Opened(model)
    model.apply(joined(0, NOW_S))
    model.apply(telemetry(0, NOW_S, cpu_percent=float("nan")))
    page.second()
    assert "ValueError" in str(page.section("failure"))
    assert json.loads(page.board.state())["workers"] == []


def test_a_page_that_is_opened_while_everything_fails() -> None:
    model = Moody()
    model.fails = True
    page = Opened(model)
    assert "ZeroDivisionError: on purpose" in page.section("failure")
    model.fails = False
    page.second()
    assert page.section("workers") == []


def test_closing_tells_the_page_and_ends_its_callback() -> None:
    page = Opened(ViewModel())
    page.board.close()
    page.second()
    assert page.section("is_closed") is True
    assert page.doc.session_callbacks == []
