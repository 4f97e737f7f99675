"""Takes the picture of the page for the documentation: a real browser, a real cluster, real work, agents and troubles.

`python -m tests.support.take_pictures docs/pictures/dashboard.png [FOLDER]`; in the folder also at other sizes, in dark
colours, and of the empty page.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Literal

from PIL import Image

import swarm as public
from swarm.client import Swarm
from swarm.deploy.local import LocalProcesses
from swarm.deploy.slowed import slowed
from swarm.deploy.spec import ClusterSpec
from tests.support.browser import Browser, open_browser
from tests.support.processes import wait_until

WORKERS = 8
WIDTH = 1280
DEADLINE_S = 60.0


class Watchman(public.BaseAgent):
    """An agent of one's own: counts how often it looked."""

    looks = 0

    async def execute_cycle(self) -> None:
        self.looks += 1

    def state(self) -> dict[str, int]:
        return {"looks": self.looks}

    def restore(self, state: dict[str, int]) -> None:
        self.looks = state["looks"]


class Unlucky(public.BaseAgent):
    """An agent that fails again and again."""

    interval_s = 0.2
    cycles = 0

    async def execute_cycle(self) -> None:
        self.cycles += 1
        if self.cycles > 1:
            raise OSError("the printer is on fire")


@contextmanager
def troubled(cluster: LocalProcesses, swarm: Swarm) -> Iterator[None]:
    """Agents of all kinds, one that fails, a slow worker, one that was killed, runs done and under way."""
    orchestrator = swarm.orchestrator
    orchestrator.create_agent("compute", "compute", where="every-worker", pin="cores")
    orchestrator.create_agent("optimization", "tuner", where="every-worker", seed=1)
    for kind, where in (("thermal", "every-host"), ("fault_tolerance", "every-host"), ("learning", "scheduler")):
        orchestrator.create_agent(kind, kind.replace("_", "-"), where=where)
    orchestrator.create_agent("resource", "pressure", where="every-worker")
    orchestrator.create_agent(Watchman, "watchman", isolation="process")
    orchestrator.create_agent(Unlucky, "unlucky")
    client = swarm.client
    swarm.submit("options").result()
    names = {str(w["name"]): a for a, w in client.scheduler_info(n_workers=-1)["workers"].items()}
    pids = client.run(os.getpid)
    with ExitStack() as stack:
        victim, slow = names["worker-3"], names["worker-5"]
        nap = client.submit(time.sleep, 30, key="nap", workers=[victim], pure=False)
        wait_until(lambda: any(client.processing([victim]).values()), "a task on the victim", DEADLINE_S)
        time.sleep(1.0)  # it runs there
        os.kill(pids[victim], signal.SIGKILL)
        wait_until(lambda: swarm.status()["deaths"], "that it is lost", DEADLINE_S)
        nap.cancel()
        stack.enter_context(slowed(pids[slow], 10.0))
        runs = [swarm.submit("heat"), swarm.submit("kmeans")]
        while min(run.info()["finished"] for run in runs) < 100:
            time.sleep(0.2)
        yield
        for run in runs:
            run.cancel()


def take(path: Path, folder: Path | None = None) -> None:
    from distributed import Client

    spec = ClusterSpec(workers=WORKERS, threads_per_worker=1, memory_limit="1GiB")
    with (
        LocalProcesses(spec) as cluster,
        Swarm(Client(cluster.address), own_client=True) as swarm,
        open_browser() as browser,
    ):
        browser.open(swarm.page)
        browser.wait("document.querySelector('#connection').innerText == 'Live'", "a live page")
        if folder is not None:
            _others(browser, folder, "quiet")
        with troubled(cluster, swarm):
            browser.wait_text("#deaths", "worker-3")
            _shot(browser, path, WIDTH, "light")
            if folder is not None:
                _others(browser, folder, "full")


def _others(browser: Browser, folder: Path, state: str) -> None:
    folder.mkdir(exist_ok=True)
    _shot(browser, folder / f"{state}-light-1400.png", 1400, "light")
    _shot(browser, folder / f"{state}-dark-1400.png", 1400, "dark")
    _shot(browser, folder / f"{state}-light-800.png", 800, "light")
    _shot(browser, folder / f"{state}-dark-800.png", 800, "dark")


def _shot(browser: Browser, path: Path, width: int, scheme: Literal["light", "dark"]) -> None:
    """The whole page, however high it is."""
    browser.color_scheme(scheme)
    for height in ("800", "document.documentElement.scrollHeight"):
        browser.size(width, int(str(browser.driver.execute_script(f"return {height}"))))
        time.sleep(0.7)  # until it is drawn
    browser.picture(path)
    Image.open(path).convert("RGB").save(path, optimize=True)


if __name__ == "__main__":
    take(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None)
