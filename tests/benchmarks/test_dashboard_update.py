"""What a second of the page costs the scheduler's event loop. Budget: 2 ms with 100 workers."""

from __future__ import annotations

import pytest
from bokeh.document import Document
from bokeh.document.events import DocumentPatchedEvent
from bokeh.models import ColumnDataSource
from bokeh.protocol import Protocol
from pytest_benchmark.fixture import BenchmarkFixture

from swarm.dashboard import views
from swarm.dashboard.board import Board
from swarm.dashboard.view_model import ViewModel
from tests.support.made_up_cluster import busy_cluster, busy_second

BUDGET_S = {10: 0.001, 100: 0.002, 500: 0.010}


@pytest.mark.parametrize("workers", BUDGET_S)
def test_a_second_of_the_page(benchmark: BenchmarkFixture, workers: int) -> None:
    """Make the sections, put them into the sources of one open page, and write the message to the browser."""
    now_s = 1_000_000.0
    model = ViewModel()
    for event in busy_cluster(workers, now_s):
        model.apply(event)
    board = Board(model, {"cluster": "tcp://10.0.0.1:8786", "version": "1"}, clock=lambda: now_s)
    doc = Document()
    views.build(doc, board)
    sections = doc.get_model_by_name("board")
    rates = doc.get_model_by_name("chart").renderers[0].data_source
    assert isinstance(sections, ColumnDataSource)
    sent_bytes = []

    def send(event: DocumentPatchedEvent) -> None:
        sent_bytes.append(len(Protocol().create("PATCH-DOC", [event]).content_json))

    doc.on_change_dispatch_to(type("Session", (), {"_document_patched": staticmethod(send)})())

    def next_second() -> None:
        nonlocal now_s
        now_s += 1.0
        for event in busy_second(workers, now_s):
            model.apply(event)

    benchmark.pedantic(views.update, (board, sections, rates), setup=next_second, rounds=200)
    assert len(sent_bytes) == 200
    benchmark.extra_info["bytes_per_second"] = max(sent_bytes)
    assert benchmark.stats.stats.median < BUDGET_S[workers]
