"""The page as a part of the dashboard server of a real scheduler that was already running; no browser."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urljoin

import dask
import pytest
from distributed import Scheduler
from tornado.httpclient import AsyncHTTPClient, HTTPClientError

import swarm
from swarm.dashboard.routes import Page, install
from swarm.dashboard.view_model import ViewModel
from tests.support.made_up_cluster import joined


@asynccontextmanager
async def scheduler(**options: object) -> AsyncIterator[Scheduler]:
    async with Scheduler(host="127.0.0.1", port=0, **({"dashboard_address": "127.0.0.1:0"} | options)) as running:
        yield running


async def get(running: Scheduler, path: str, seen_from: str = "/") -> str:
    url = urljoin(f"http://127.0.0.1:{running.http_server.port}{seen_from}", path)
    answer = await AsyncHTTPClient().fetch(url)
    return answer.body.decode()


async def status_of(running: Scheduler, path: str, seen_from: str = "/") -> int:
    try:
        await get(running, path, seen_from)
    except HTTPClientError as error:
        return error.code
    return 200


async def test_the_page_appears_on_a_running_scheduler_and_disturbs_nothing() -> None:
    async with scheduler() as running:
        before = await get(running, "/status")
        assert await status_of(running, "/swarm") == 404
        page = install(running, ViewModel())
        assert page.url == f"http://127.0.0.1:{running.http_server.port}/swarm"
        assert page.reason == ""
        assert "<title>Swarm</title>" in await get(running, "/swarm")
        after = await get(running, "/status")
        assert len(after.splitlines()) >= len(before.splitlines())
        assert 'href="swarm"' in after
        assert await status_of(running, "/health") == 200


async def test_all_scripts_of_the_page_come_from_the_scheduler() -> None:
    """It must work on a network without a way out."""
    async with scheduler() as running:
        install(running, ViewModel())
        html = await get(running, "/swarm")
        scripts = re.findall(r'<script[^>]*src="([^"]+)"', html)
        assert scripts
        for script in scripts:
            assert await status_of(running, script, seen_from="/swarm") == 200
            assert await status_of(running, script, seen_from="/swarm/") == 200
        assert not re.findall(r'(?:src|href)="https?://', html)


async def test_state_json() -> None:
    async with scheduler() as running:
        model = ViewModel()
        install(running, model)
        model.apply(joined(0, 1.0, name="<b>"))
        state = json.loads(await get(running, "/swarm/state.json"))
        assert state["about"] == {"cluster": running.address, "version": swarm.__version__}
        assert [worker["name"] for worker in state["workers"]] == ["<b>"]
        assert state["totals"]["workers"] == 1
        assert (state["failure"], state["is_closed"]) == ("", False)


@pytest.mark.parametrize("prefix", ["/here", "here/and/there/"])
async def test_with_a_prefix(prefix: str) -> None:
    async with scheduler(http_prefix=prefix) as running:
        page = install(running, ViewModel())
        path = f"/{prefix.strip('/')}/swarm"
        assert str(page.url).endswith(path)
        html = await get(running, path)
        for script in re.findall(r'<script[^>]*src="([^"]+)"', html):
            assert await status_of(running, script, seen_from=path) == 200
        assert await status_of(running, f"{path}/state.json") == 200
        assert await status_of(running, "/swarm") == 404


async def test_the_url_is_made_like_the_link_that_dask_prints() -> None:
    async with scheduler() as running:
        link = "https://hub.example/user/ann/proxy/{port}/status"
        with dask.config.set({"distributed.dashboard.link": link}):
            page = install(running, ViewModel())
        assert page.url == f"https://hub.example/user/ann/proxy/{running.http_server.port}/swarm"
        page.close()
        with dask.config.set({"distributed.dashboard.link": "https://{SWARM_NOT_SET}/status"}):
            assert install(running, ViewModel()).url == f"http://127.0.0.1:{running.http_server.port}/swarm"


async def test_dasks_own_settings_hold_for_the_page() -> None:
    settings = {"allow_websocket_origin": ["only.example:80"], "keep_alive_milliseconds": 500}
    with dask.config.set({"distributed.scheduler.dashboard.bokeh-application": settings}):
        async with scheduler() as running:
            install(running, ViewModel())
            origins = [app.websocket_origins for app in running.http_application.applications if hasattr(app, "prefix")]
            assert origins == [{"only.example:80"}] * 2


async def test_close_takes_everything_away() -> None:
    async with scheduler() as running:
        applications = list(running.http_application.applications)
        status = await get(running, "/status")
        page = install(running, ViewModel())
        page.close()
        page.close()
        assert running.http_application.applications == applications
        assert await status_of(running, "/swarm") == 404
        assert await status_of(running, "/swarm/state.json") == 404
        assert ('href="swarm"' in status, 'href="swarm"' in await get(running, "/status")) == (False, False)
        assert install(running, ViewModel()).url, "and it can be added again"
        assert await status_of(running, "/swarm") == 200


async def test_a_failing_view_model_breaks_neither_the_page_nor_dask(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(ViewModel):
        def state(self, now_s: float) -> dict[str, object]:
            raise LookupError("broken on purpose")

    async with scheduler() as running:
        install(running, Broken())
        with caplog.at_level(logging.ERROR):
            assert json.loads(await get(running, "/swarm/state.json"))["failure"] == "LookupError: broken on purpose"
            assert await status_of(running, "/swarm") == 200
            assert await status_of(running, "/status") == 200
        assert [record.name for record in caplog.records if record.levelno >= logging.ERROR] == [
            "swarm.dashboard.board"
        ]


NO_DASHBOARD = """
import asyncio, json, sys
from distributed import Scheduler
from tornado.httpclient import AsyncHTTPClient
from swarm.dashboard.routes import install
from swarm.dashboard.view_model import ViewModel

async def main():
    async with Scheduler(host="127.0.0.1", port=0, dashboard=False, dashboard_address="127.0.0.1:0") as scheduler:
        page = install(scheduler, ViewModel())
        answer = await AsyncHTTPClient().fetch(f"http://127.0.0.1:{scheduler.http_server.port}/swarm/state.json")
        print(json.dumps([page.url, page.reason, json.loads(answer.body)["workers"], "bokeh" in sys.modules]))
        page.close()

asyncio.run(main())
"""


def test_without_dashboard_there_is_a_reason_and_json_and_no_bokeh() -> None:
    done = subprocess.run([sys.executable, "-c", NO_DASHBOARD], capture_output=True, text=True, timeout=60, check=True)
    url, reason, workers, has_bokeh = json.loads(done.stdout)
    assert (url, workers, has_bokeh) == (None, [], False)
    assert "--no-dashboard" in reason


async def test_without_dashboard_next_to_a_scheduler_that_has_one() -> None:
    async with scheduler(), scheduler(dashboard=False) as plain:
        page = install(plain, ViewModel())
        assert isinstance(page, Page)
        assert page.url is None
        assert await status_of(plain, "/swarm") == 404
        assert await status_of(plain, "/swarm/state.json") == 200


async def test_a_closed_scheduler_leaves_no_callback_behind() -> None:
    before = {task for task in asyncio.all_tasks() if not task.done()}
    async with scheduler() as running:
        page = install(running, ViewModel())
        await get(running, "/swarm")
        page.close()
    await asyncio.sleep(0)
    assert {task for task in asyncio.all_tasks() if not task.done()} <= before
