"""A scheduler process with the page `/swarm` and a made-up cluster on it, to be killed by a test.

`python -m tests.support.page_server WORKERS DASHBOARD_PORT` prints the page's address and runs until it is killed.
"""

from __future__ import annotations

import asyncio
import sys
import time

from distributed import Scheduler

from swarm.dashboard.routes import install
from swarm.dashboard.view_model import ViewModel
from tests.support.made_up_cluster import busy_cluster, busy_second, sampled


async def main(workers: int, port: int) -> None:
    model = ViewModel()
    async with Scheduler(host="127.0.0.1", port=0, dashboard_address=f"127.0.0.1:{port}") as scheduler:
        page = install(scheduler, model)
        now_s = time.time()
        for event in busy_cluster(workers, now_s):
            model.apply(event)
        sampled_at_s = now_s - 1.0
        print(page.url, flush=True)
        while True:
            await asyncio.sleep(1.0)
            now_s = time.time()
            for event in busy_second(workers, now_s):
                model.apply(event)
            finished = model.totals(now_s).tasks_finished or 0
            finished += int(14 * workers * (now_s - sampled_at_s))
            model.apply(sampled(now_s, finished, workers=workers))
            sampled_at_s = now_s


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2])))
