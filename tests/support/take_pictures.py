"""Takes the picture of the page for the documentation: a real browser, a real cluster, real work and real readings.

`python -m tests.support.take_pictures docs/pictures/dashboard.png`
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from PIL import Image

from swarm.client import Swarm
from swarm.deploy.local import LocalProcesses
from swarm.deploy.spec import ClusterSpec
from tests.support.browser import open_browser

WORKERS = 8
SIZE = (1280, 800)


def take(path: Path) -> None:
    from distributed import Client

    spec = ClusterSpec(workers=WORKERS, threads_per_worker=1, memory_limit="1GiB")
    with LocalProcesses(spec) as cluster, Swarm(Client(cluster.address), own_client=True) as swarm:
        swarm.submit("options").result()
        time.sleep(8)  # idle, so that the chart has a shape
        runs = [swarm.submit("heat"), swarm.submit("kmeans")]
        with open_browser() as browser:
            browser.size(*SIZE)
            browser.color_scheme("light")
            browser.open(swarm.page)
            browser.wait_text("#alerts li", "CPU of host")
            while min(run.info()["finished"] for run in runs) < 100:
                time.sleep(0.2)
            browser.wait_text("#runs", "kmeans")
            browser.picture(path)
        for run in runs:
            run.cancel()
    Image.open(path).convert("RGB").save(path, optimize=True)


if __name__ == "__main__":
    take(Path(sys.argv[1]))
