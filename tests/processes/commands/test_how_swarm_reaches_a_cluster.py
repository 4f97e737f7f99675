"""Swarm comes to a cluster by Dask's configuration or from the client; and where it can't be imported, it says so."""

from __future__ import annotations

import re

import pytest
from distributed import Client

import swarm
from swarm.errors import MissingPackageError
from swarm.status import fetch
from tests.support.command_line import Place
from tests.support.processes import wait_until

CONFIGURED = {
    "DASK_DISTRIBUTED__SCHEDULER__PRELOAD": '["scheduler_plugins"]',
    "DASK_DISTRIBUTED__WORKER__PRELOAD": '["swarm.agents"]',
}


def agents(address: str) -> dict[str, bool]:
    return {row["name"]: row["health"] != "no agent" for row in fetch(address)["workers"]}


def test_preloads_in_the_configuration_of_dask(place: Place) -> None:
    with (
        place.scheduler(**CONFIGURED) as scheduler,
        place.worker(scheduler.address, "--name", "a", **CONFIGURED),
    ):
        assert fetch(scheduler.address)["settings"]
        wait_until(lambda: agents(scheduler.address) == {"a": True}, "the agents have started")


@pytest.mark.filterwarnings("ignore::distributed.versions.VersionMismatchWarning")
def test_a_client_brings_swarm_to_plain_dask_and_to_who_comes_later(place: Place) -> None:
    with (
        place.scheduler() as scheduler,
        place.worker(scheduler.address, "--name", "a"),
        swarm.connect(scheduler.address) as connected,
    ):
        assert agents(scheduler.address) == {"a": True}
        assert connected.submit({"two": (pow, 2, 1)}).result(timeout=30) == 2
        with place.worker(scheduler.address, "--name", "b", "--no-nanny"):
            wait_until(lambda: agents(scheduler.address) == {"a": True, "b": True}, "the later one has agents as well")


@pytest.mark.filterwarnings("ignore::distributed.versions.VersionMismatchWarning")
def test_a_worker_that_cannot_import_swarm_is_named_and_unharmed(place: Place) -> None:
    dask, bare = place.without_swarm()
    with (
        place.scheduler() as scheduler,
        place.worker(scheduler.address, "--name", "bare", program=dask, **bare) as worker,
    ):
        install = rf"install dask-swarm=={re.escape(swarm.__version__)} there, or remove that worker"
        with pytest.raises(
            MissingPackageError, match=rf"^worker tcp://\S+ can't import swarm \(No module named 'swarm'\); {install}$"
        ):
            swarm.connect(scheduler.address)
        assert agents(scheduler.address) == {"bare": False}
        with Client(scheduler.address, set_as_default=False) as client:
            assert client.submit(pow, 2, 10).result(timeout=30) == 1024
        said = place.run("swarm", "run", "heat", "--address", scheduler.address)
        assert said.code == 1
        assert "can't import swarm" in said.log[-1]
        assert "Traceback" not in said.err
        assert worker.process.poll() is None


def test_a_scheduler_that_cannot_import_swarm_is_named(place: Place) -> None:
    dask, bare = place.without_swarm()
    with place.scheduler(program=dask, **bare) as scheduler:
        said = place.run("swarm", "run", "heat", "--address", scheduler.address)
        assert said.code == 1
        assert re.fullmatch(
            rf"swarm: error: scheduler {scheduler.address} can't import swarm \(No module named 'scheduler_plugins'\); "
            r"install dask-swarm==\S+ there and start it again",
            said.complaint,
        )
        with place.worker(scheduler.address, "--preload", "swarm.agents", "--no-nanny") as worker:
            worker.waits_for(r'"agents_refused".*this worker runs as a plain Dask worker')
            with Client(scheduler.address, set_as_default=False) as client:
                assert client.submit(pow, 2, 10).result(timeout=30) == 1024
