"""A plain Dask cluster that is already running, onto which the page `/swarm` is put."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from distributed import LocalCluster

from swarm.dashboard.routes import Page, install
from swarm.dashboard.view_model import ViewModel
from swarm.protocol import Event


class ShownCluster:
    """The cluster, its page, and a way to let things happen on the page."""

    def __init__(self, cluster: LocalCluster, model: ViewModel) -> None:
        self.cluster = cluster
        self.model = model

        async def on_loop() -> Page:
            return install(cluster.scheduler, model)

        self.page: Page = cluster.sync(on_loop)
        assert self.page.url
        self.url = self.page.url
        self.status_url = self.url.removesuffix("swarm") + "status"

    def apply(self, events: Iterable[Event]) -> None:
        """Feed the view model on the event loop, as the scheduler plugin does."""

        async def on_loop() -> None:
            for event in events:
                self.model.apply(event)

        self.cluster.sync(on_loop)

    def close(self) -> None:
        async def on_loop() -> None:
            self.page.close()

        self.cluster.sync(on_loop)


@contextmanager
def shown_cluster(model: ViewModel | None = None) -> Iterator[ShownCluster]:
    options = {"n_workers": 0, "processes": False, "protocol": "tcp://"}
    with LocalCluster(host="127.0.0.1", dashboard_address="127.0.0.1:0", **options) as cluster:
        shown = ShownCluster(cluster, model or ViewModel())
        yield shown
        shown.close()
