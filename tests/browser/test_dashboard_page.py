"""The page `/swarm` as a person sees it: a real browser on the dashboard server of a real Dask cluster."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from swarm.dashboard.view_model import ViewModel
from swarm.protocol import AgentRefused, Event, PartDisabled, RunEnded, RunProgressed, WorkerJoined, WorkerLeft
from tests.support.browser import Browser
from tests.support.made_up_cluster import (
    address,
    busy_cluster,
    busy_second,
    joined,
    memory_alert,
    sampled,
    telemetry,
)
from tests.support.shown_cluster import ShownCluster, shown_cluster

LIVE = "document.querySelector('#connection').innerText == 'Live'"


@pytest.fixture
def shown(browser: Browser) -> Iterator[ShownCluster]:
    # After `browser`, so that the page is left before its server closes.
    with shown_cluster() as shown:
        yield shown
        browser.open("about:blank")


def opened(browser: Browser, shown: ShownCluster) -> Browser:
    browser.open(shown.url)
    browser.wait(LIVE, "a live page")
    return browser


def tile(worker: int) -> str:
    return f'.tile[data-address="{address(worker)}"]'


def test_workers_alerts_rate_and_runs(browser: Browser, shown: ShownCluster) -> None:
    page = opened(browser, shown)
    shown.apply(busy_cluster(8, time.time()))  # not before: on a busy machine the readings would be stale at once
    page.wait("document.querySelectorAll('.tile').length == 8", "eight tiles")
    assert page.text("#cluster") == shown.cluster.scheduler_address
    assert page.texts("#totals b")[:2] == ["8", "32"]
    assert page.text('[data-total="alert"] b') == "1"
    assert page.texts(".tile .word") == 2 * ["healthy"] + ["alert"] + 2 * ["healthy"] + ["no agent", "stale", "healthy"]
    assert page.text(f"{tile(2)} .Memory .value") == "91 %"
    assert page.text(f"{tile(5)} .CPU .value") == "–"

    assert "node-02 holds 7.3 of 8.0 GiB" in page.text("#alerts li.serious p")
    assert page.texts("#alerts .headline b") == ["Serious", "Cleared"]
    assert float(page.text('[data-total="rate"] b')) > 0
    assert (
        page.wait("Bokeh.documents[0].get_model_by_name('chart').renderers[0].data_source.get_length()", "points")
        == 239
    )
    assert page.texts("#runs .headline b") == ["heat", "kmeans", "options", "heat"]
    assert page.texts("#runs .status") == ["pending", "running", "error", "finished"]
    assert "3,120 of 5,200 tasks · 3 erred" in page.text("#runs li.running")


def test_it_follows_what_happens(browser: Browser, shown: ShownCluster) -> None:
    now_s = time.time()
    shown.apply(busy_cluster(3, now_s))
    page = opened(browser, shown)
    page.wait_text(f"{tile(1)} .word", "healthy")
    shown.apply([memory_alert(1, now_s), telemetry(1, now_s, memory_bytes=8 << 30), joined(3, now_s)])
    page.wait_text(f"{tile(1)} .word", "alert")
    page.wait_text(f"{tile(1)} .Memory .value", "100 %")
    page.wait("document.querySelectorAll('.tile').length == 4", "the new worker")
    shown.apply([RunProgressed(at_s=now_s, run="r3", tasks=5200, finished=5000, erred=3, processing=1)])
    page.wait_text("#runs li.running", "5,000 of 5,200")
    shown.apply([RunEnded(at_s=now_s, run="r3", status="finished", elapsed_s=76.0), sampled(now_s + 2, 10**6)])
    page.wait_text('#runs [data-run="r3"]', "finished")
    page.wait(
        "Bokeh.documents[0].get_model_by_name('chart').renderers[0].data_source.get_length() == 240", "a new point"
    )
    shown.apply([WorkerLeft(at_s=now_s, worker=address(2))])
    page.wait("document.querySelectorAll('.tile').length == 3", "the worker to be gone")


def test_empty_then_first_worker_then_empty(browser: Browser, shown: ShownCluster) -> None:
    page = opened(browser, shown)
    page.wait_text("#workers", "No workers yet")
    command = f"dask worker {shown.cluster.scheduler_address} --preload swarm.agents"
    assert page.text("#workers .command") == command
    assert "No alerts" in page.text("#alerts")
    assert "No runs yet" in page.text("#runs")
    assert "Waiting for the first samples" in page.text("#rate")
    assert page.text('[data-total="rate"] b') == "–"
    shown.apply([joined(0, time.time())])
    page.wait_text(tile(0), "node-00")
    assert "No workers yet" not in page.text("#workers")
    shown.apply([WorkerLeft(at_s=time.time(), worker=address(0))])
    page.wait_text("#workers", "No workers yet")


def test_workers_without_agents(browser: Browser, shown: ShownCluster) -> None:
    now_s = time.time()
    shown.apply([joined(0, now_s, has_agents=False), joined(1, now_s)])
    shown.apply([AgentRefused(at_s=now_s, worker=address(1), reason="It has swarm 0.0.9.")])
    page = opened(browser, shown)
    page.wait_text("#workers-note", "No worker runs agents")
    assert "--preload swarm.agents" in page.text("#workers-note")
    assert page.texts(".tile .word") == ["no agent", "no agent"]
    shown.apply([telemetry(0, time.time())])
    page.wait_text("#workers-note", "1 worker without agents")


def test_details_on_hover_and_on_focus(browser: Browser, shown: ShownCluster) -> None:
    shown.apply(busy_cluster(8, time.time()))
    page = opened(browser, shown)
    page.wait("document.querySelectorAll('.tile').length == 8", "eight tiles")
    page.hover(tile(2))
    page.wait_text("#details", address(2))
    details = page.text("#details")
    assert "7.3 GiB of 8.0 GiB" in details
    assert "the limit is 85 %" in details
    page.hover("header")
    page.wait("document.querySelector('#details').hidden", "no details")
    page.driver.execute_script("document.querySelector(arguments[0]).focus()", tile(5))
    page.wait_text("#details", "It has swarm 0.0.9")


def test_a_part_that_was_switched_off(browser: Browser, shown: ShownCluster) -> None:
    page = opened(browser, shown)
    shown.apply([PartDisabled(at_s=time.time(), part="memory guard", reason="KeyError: 'nbytes'.", failures=3)])
    page.wait_text("#banners", "Switched off: memory guard")
    assert "KeyError: 'nbytes' (3 failures). Dask goes on without it." in page.text("#banners")


def test_text_from_the_cluster_is_never_html(browser: Browser, shown: ShownCluster) -> None:
    evil = '<img src=x onerror="window.broken_into=1"></script><script>window.broken_into=1</script>&amp;'
    now_s = time.time()
    events: list[Event] = [
        WorkerJoined(at_s=now_s, worker=evil, name=evil, host=evil, threads=1, memory_limit_bytes=1),
        AgentRefused(at_s=now_s, worker=evil, reason=evil),
        PartDisabled(at_s=now_s, part=evil, reason=evil),
        joined(1, now_s, name=evil),
        memory_alert(1, now_s, name=evil),
    ]
    shown.apply([*busy_cluster(1, now_s), *events])
    page = opened(browser, shown)
    page.wait_text(".tile .name", evil)
    page.wait_text("#alerts p", evil)
    page.wait_text("#banners", evil)
    page.hover(tile(1))
    page.wait_text("#details", evil)
    assert not page.driver.execute_script(
        "return window.broken_into || document.querySelector('main img, #details img')"
    )


def test_many_workers_fit_a_narrow_window(browser: Browser, shown: ShownCluster) -> None:
    browser.size(600, 800)
    shown.apply(busy_cluster(500, time.time()))
    page = opened(browser, shown)
    page.wait("document.querySelectorAll('#tiles.dense .tile').length == 500", "five hundred tiles")
    assert page.driver.execute_script("return document.documentElement.scrollWidth") == 600
    shown.apply(busy_second(500, time.time()))
    assert page.text("#workers small").startswith("459 healthy · 22 alert")


def test_dark_mode_follows_the_browser(browser: Browser, shown: ShownCluster) -> None:
    page = opened(browser, shown)
    background = "getComputedStyle(document.body).backgroundColor"
    light = page.wait(background, "a colour")
    page.color_scheme("dark")
    page.wait(f"{background} != {light!r}", "dark colours")


class Moody(ViewModel):
    fails = False

    def state(self, now_s: float) -> dict[str, object]:
        if self.fails:
            raise ZeroDivisionError("on purpose")
        return super().state(now_s)


def test_a_failure_of_ours_is_shown_and_dask_goes_on(browser: Browser) -> None:
    model = Moody()
    with shown_cluster(model) as shown:
        page = opened(browser, shown)
        model.fails = True
        page.wait_text("#banners", "This page failed and shows old values")
        assert "ZeroDivisionError: on purpose" in page.text("#banners")
        model.fails = False
        page.wait("!document.querySelector('.banner')", "the banner to go")
        page.open("about:blank")


def test_dasks_own_page_still_works_and_links_to_ours(browser: Browser, shown: ShownCluster) -> None:
    browser.open(shown.status_url)
    browser.wait("window.Bokeh?.documents[0]?.is_idle", "Dask's status page to be drawn")
    browser.driver.execute_script("document.querySelector('.navbar a[href=\"swarm\"]').click()")
    browser.wait(f"document.querySelector('#connection') && {LIVE}", "our page")
    browser.driver.execute_script("document.querySelector('header a').click()")
    browser.wait("document.title.startsWith('Dask')", "Dask's page again")


def test_switched_off_and_on_again(browser: Browser, shown: ShownCluster) -> None:
    page = opened(browser, shown)
    shown.close()
    page.wait_text("#banners", "The page was switched off")
    assert page.text("#connection") == "Disconnected"
    with_new_model = ShownCluster(shown.cluster, ViewModel())
    with_new_model.apply([joined(0, time.time())])
    page.wait_text(".tile", "node-00")
    with_new_model.close()
    page.open("about:blank")
    assert all("404" in error for error in page.errors())


def test_a_killed_scheduler_shows_and_its_successor_too(browser: Browser) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def start(workers: int) -> tuple[subprocess.Popen[str], str]:
        command = [sys.executable, "-m", "tests.support.page_server", str(workers), str(port)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert process.stdout
        return process, process.stdout.readline().strip()

    process, url = start(2)
    try:
        browser.open(url)
        browser.wait(LIVE, "a live page")
        browser.wait("document.querySelectorAll('.tile').length == 2", "two tiles")
        assert browser.errors() == []
        process.kill()
        process.communicate()
        browser.wait_text("#banners", "Disconnected from the scheduler")
        assert browser.text("#connection") == "Disconnected"
        assert re.search(r"What you see is (5|6|7|8|9)\.\d s old", browser.text("#banners"))
        assert len(browser.texts(".tile")) == 2, "the last picture stays, greyed"
        process, again = start(3)
        assert again == url
        browser.wait("document.querySelectorAll('.tile').length == 3", "the successor's page")
        browser.wait(LIVE, "a live page")
        browser.open("about:blank")
        assert all("CONNECTION_REFUSED" in error or "RESET" in error for error in browser.errors())
    finally:
        process.kill()
        process.communicate()
