"""What notices say, in the ways of three clouds and by hand; and how the time of one is spent."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler_plugins.decide.drain import MARGIN_S, Left, plan
from swarm.agents.watch.notice import drain_first, of_file, of_url, seconds_left, source_of
from swarm.errors import SettingsError

NOON_S = 1_505_721_600.0
"""2017-09-18 08:00:00 UTC."""


def azure(*kinds: str) -> str:
    events = [{"EventType": kind, "NotBefore": "Mon, 18 Sep 2017 08:00:30 GMT"} for kind in kinds]
    return json.dumps({"DocumentIncarnation": 1, "Events": events})


@pytest.mark.parametrize(
    ("text", "left_s"),
    [
        ("", 20.0),
        ("TRUE", 20.0),
        ("true\n", 20.0),
        ("FALSE", None),
        ("NONE", None),
        ("30", 30.0),
        ("-5", 0.0),
        ('{"action": "terminate", "time": "2017-09-18T08:02:00Z"}', 120.0),
        ('{"action": "terminate", "time": "2017-09-18T07:00:00Z"}', 0.0),
        ('{"action": "hibernate"}', 20.0),
        (azure(), None),
        (azure("Reboot"), None),
        (azure("Preempt"), 30.0),
        (azure("Reboot", "Terminate"), 30.0),
    ],
)
def test_what_a_notice_says(text: str, left_s: float | None) -> None:
    assert seconds_left(text, NOON_S, 20.0) == left_s


@pytest.mark.parametrize("text", ["soon", "null", "[1]", '"x"', '{"time": "soon"}', "<html>"])
def test_what_is_no_notice_is_an_error(text: str) -> None:
    if text == "null":
        with pytest.raises(ValueError, match="null"):
            seconds_left(text, NOON_S, 20.0)
    else:
        with pytest.raises(ValueError, match=r"."):
            seconds_left(text, NOON_S, 20.0)


def test_a_file_that_appears_is_a_notice(tmp_path: Path) -> None:
    source = source_of(str(tmp_path / "notice"), 20.0)
    assert source() is None
    (tmp_path / "notice").write_text("7")
    assert source() == 7.0


class _Metadata(BaseHTTPRequestHandler):
    """A cloud that answers only with a token, and whose notice comes when it is told."""

    text: str | None = None

    def do_PUT(self) -> None:
        assert self.path == "/latest/api/token"
        self._say("secret")

    def do_GET(self) -> None:
        if self.headers["X-aws-ec2-metadata-token"] != "secret":
            self.send_error(401)
        elif self.text is None:
            self.send_error(404)
        else:
            self._say(self.text)

    def _say(self, text: str) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def metadata() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), _Metadata) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/latest/meta-data/spot/instance-action"
        finally:
            server.shutdown()
            thread.join()


def test_a_url_is_asked_as_the_clouds_want_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with metadata() as url:
        source = of_url(url, 20.0)
        assert source() is None
        monkeypatch.setattr(_Metadata, "text", '{"action": "terminate"}')
        assert source() == 20.0


def test_a_function_is_named_by_its_module() -> None:
    assert source_of("time:monotonic", 20.0)() is not None
    for wrong in ("time:nothing", "no.such.module:look", "time:timezone"):
        with pytest.raises(SettingsError, match="notice_source"):
            source_of(wrong, 20.0)


def test_a_file_that_makes_no_sense_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "notice"
    path.write_text("shutting down")
    with pytest.raises(ValueError, match="Expecting value"):
        of_file(str(path), 20.0)()


def test_what_ends_in_time_goes_on_and_the_rest_runs_elsewhere() -> None:
    made = plan([Left("short", 2.0, 4.0), Left("unsure", 5.0, 60.0), Left("long", 90.0, 99.0)], 30.0, 1e8, 1e8)
    assert made.elsewhere == ("unsure", "long")
    assert made.wait_s == pytest.approx(30.0 - 3.0 - MARGIN_S - 1.0)


@given(st.lists(st.floats(0.0, 1e6)), st.floats(0.0, 600.0), st.floats(0.0, 1e12))
def test_time_for_the_results_is_kept(tails_s: list[float], notice_s: float, results_bytes: float) -> None:
    made = plan([Left(i, p99_s / 2, p99_s) for i, p99_s in enumerate(tails_s)], notice_s, results_bytes, 1e8)
    assert 0.0 <= made.wait_s <= max(notice_s - results_bytes / 1e8, 0.0)
    assert {i for i, p99_s in enumerate(tails_s) if p99_s > made.wait_s} <= {*made.elsewhere}


class _Nanny:
    """A nanny whose scheduler is gone."""

    connection_args: ClassVar[dict[str, object]] = {}

    def __init__(self, scheduler: str) -> None:
        self.scheduler = SimpleNamespace(address=scheduler)
        self.closed: list[str] = []

    async def close(self, timeout: float = 5.0, reason: str = "") -> None:
        self.closed.append(reason)


async def test_a_nanny_closes_soon_where_no_scheduler_hears_it() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{unused.getsockname()[1]}"
    nanny = _Nanny(address)
    drain_first(nanny, lambda: "tcp://127.0.0.1:1", notice_s=600.0)  # type: ignore[arg-type]
    async with asyncio.timeout(30.0):
        await nanny.close(timeout=10, reason="signal-15")
        await nanny.close(reason="nanny-close")
    assert nanny.closed == ["signal-15", "nanny-close"]
