"""Plain `dask scheduler`, and `dask worker --preload swarm.agents`: one cluster for all tests of this module."""

from __future__ import annotations

import json
import re
import urllib.request
from collections.abc import Iterator

import pytest

from swarm.status import fetch
from tests.support.command_line import Place, Scheduler
from tests.support.processes import wait_until

AGENTS = ("--preload", "swarm.agents")
WATCHED = {"healthy", "alert"}
"""On a busy machine the agents raise an alert, and are right."""

SMALL = {
    "kmeans": ("--megapixels", "0.02", "--clusters", "4", "--restarts", "1"),
    "heat": ("--points", "23", "--steps", "16", "--chunks", "1"),
    "options": ("--strikes", "1", "--maturities", "1", "--volatilities", "1", "--batches", "4"),
}


def health(address: str) -> dict[str, str]:
    return {row["name"]: row["health"] for row in fetch(address)["workers"]}


@pytest.fixture(scope="module")
def cluster(shared_place: Place) -> Iterator[Scheduler]:
    with (
        shared_place.scheduler() as scheduler,
        shared_place.worker(scheduler.address, *AGENTS, "--name", "with-nanny"),
        shared_place.worker(scheduler.address, *AGENTS, "--name", "without", "--no-nanny"),
    ):
        yield scheduler


def test_the_agents_bring_swarm_to_the_scheduler(cluster: Scheduler) -> None:
    wait_until(lambda: fetch(cluster.address)["totals"]["tasks_per_s"] is not None, "there are samples")
    found = health(cluster.address)
    assert set(found) == {"with-nanny", "without"}
    assert set(found.values()) <= WATCHED
    with urllib.request.urlopen(cluster.page, timeout=10) as answer:
        assert answer.status == 200
        assert b"<html" in answer.read().lower()


def test_status_for_a_person_and_for_a_program(cluster: Scheduler, place: Place) -> None:
    said = place.run("swarm", "status", cluster.address)
    assert (said.code, said.err) == (0, "")
    head, page, *_ = said.out.splitlines()
    assert re.fullmatch(rf"{cluster.address}   swarm \S+   2 workers, 2 threads, .*\d+ alerts?", head)
    assert page == f"dashboard {cluster.page}"
    assert re.search(r"^.  with-nanny +\d+ % +\d+ %  (healthy|alert)", said.out, re.MULTILINE)
    assert "no agent" not in said.out
    program = place.run("dask", "swarm", "status", "--json", DASK_SCHEDULER_ADDRESS=cluster.address)
    assert json.loads(program.out)["totals"]["workers"] == 2


@pytest.mark.parametrize("name", SMALL)
def test_a_workload_runs_and_is_verified(cluster: Scheduler, place: Place, name: str) -> None:
    said = place.run("swarm", "run", name, "--address", cluster.address, *SMALL[name], timeout_s=100)
    assert said.code == 0, said.err
    summary, verified = said.out.splitlines()
    assert summary
    assert verified.startswith("verified: ")
    scheduler, bar = said.err.splitlines()
    assert scheduler == f"scheduler {cluster.address}   dashboard {cluster.page}"
    assert re.match(rf"✓ {name} .*(\d+)/\1 ", bar)
    assert fetch(cluster.address)["runs"][0]["status"] == "finished"


def test_a_run_that_is_not_verified_and_one_that_takes_too_long(cluster: Scheduler, place: Place) -> None:
    said = place.run("swarm", "run", "heat", "--address", cluster.address, *SMALL["heat"], "--no-verify")
    assert said.code == 0
    assert len(said.out.splitlines()) == 1
    endless = ("--points", "191", "--steps", "2048")
    said = place.run("swarm", "run", "heat", "--address", cluster.address, *endless, "--timeout", "1")
    assert said.code == 1
    stopped = r"run heat-1-\w+ is not finished after 1 s and was stopped: \d+ of \d+ tasks were done"
    assert re.fullmatch(f"swarm: error: {stopped}", said.log[-1])
    assert "Traceback" not in said.err


def test_the_address_of_a_worker_is_not_that_of_a_scheduler(cluster: Scheduler, place: Place) -> None:
    address = fetch(cluster.address)["workers"][0]["address"]
    said = place.run("swarm", "status", address)
    assert said.code == 1
    assert said.complaint.startswith(f"swarm: error: no Dask scheduler answers at {address} (that is a worker or a nan")


# -- settings and versions that differ -----------------------------------------------------------------------------


def test_a_client_with_other_settings_than_the_scheduler(cluster: Scheduler, place: Place) -> None:
    place.write("swarm_config.json", '{"max_agents": 6}')
    said = place.run("swarm", "run", "heat", "--address", cluster.address)
    assert said.code == 2
    assert said.complaint == (
        f"swarm: error: settings differ: max_agents is 6 on the client and 32 on the scheduler {cluster.address}; "
        "start both with the same swarm_config, or leave the key out on the client (unset keys follow the scheduler)"
    )


@pytest.mark.parametrize("nanny", ["--nanny", "--no-nanny"])
def test_a_worker_with_other_settings_ends_and_says_why(cluster: Scheduler, place: Place, nanny: str) -> None:
    place.write("swarm_config.json", '{"max_agents": 6}')
    said = place.run("dask", "worker", cluster.address, *AGENTS, nanny)
    assert said.code == 2
    (refusal,) = (line for line in said.log if "agents_refused" in line)
    assert "Traceback" not in said.err
    assert json.loads(refusal)["level"] == "critical"
    assert re.match(r"settings differ: max_agents is 6 on worker tcp:\S+ and 32 on ", json.loads(refusal)["reason"])
    wait_until(lambda: len(health(cluster.address)) == 2, "the worker is gone")


def test_a_worker_of_another_version_works_without_agents(cluster: Scheduler, place: Place) -> None:
    older = place.write("older.py", "import swarm; swarm.__version__ = '0.0.9'")
    with place.worker(cluster.address, "--preload", str(older), *AGENTS, "--name", "older") as worker:
        wait_until(lambda: "agents_refused" in worker.err, "its agents were refused")
        assert health(cluster.address)["older"] == "no agent"
        (refusal,) = (line for line in worker.err.splitlines() if "agents_refused" in line)
        assert re.match(
            r"versions of swarm differ: client .*, scheduler \d\S+, workers .*0\.0\.9 .*; install dask-swarm==",
            json.loads(refusal)["reason"],
        )
        said = place.run("swarm", "status", cluster.address)
        assert re.search("^no agent on older: versions of swarm differ: client", said.out, re.MULTILINE)


def test_a_client_of_another_version_is_refused(cluster: Scheduler, place: Place) -> None:
    place.write("sitecustomize.py", "import swarm; swarm.__version__ = '9.9.9'")
    said = place.run("swarm", "run", "heat", "--address", cluster.address, PYTHONPATH=str(place.folder))
    assert said.code == 1
    assert re.fullmatch(
        r"swarm: error: versions of swarm differ: client 9\.9\.9, scheduler (\d\S+), workers \1; "
        r"install dask-swarm==\1 everywhere",
        said.complaint,
    )
