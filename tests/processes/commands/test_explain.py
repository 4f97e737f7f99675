"""`swarm explain`: a task and a worker of a running cluster, a task of a run that is long over, and refusals."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest
from distributed import Client

from tests.support.command_line import Place, Scheduler

KEY = "options-book"
SMALL = ("--strikes", "1", "--maturities", "1", "--volatilities", "1", "--batches", "16")


@pytest.fixture(scope="module")
def scheduler(shared_place: Place) -> Iterator[Scheduler]:
    """One with a worker, on which a workload has been run."""
    state = str(shared_place.folder / "state")
    with (
        shared_place.scheduler("--preload", "scheduler_plugins", DASK_SWARM__STATE_DIRECTORY=state) as scheduler,
        shared_place.worker(scheduler.address, "--name", "ada", "--preload", "swarm.agents"),
    ):
        said = shared_place.run("swarm", "run", "options", "--address", scheduler.address, *SMALL)
        assert said.code == 0, said.err
        yield scheduler


def test_a_task_that_is_over(shared_place: Place, scheduler: Scheduler) -> None:
    said = shared_place.run("swarm", "explain", KEY, "--scheduler", scheduler.address)
    assert said.code == 0, said.err
    assert re.match(rf"{KEY}-\w+ took [\d.]+ m?s on ada; ", said.out)
    assert re.findall(r"^\+[\d.]+ s  (ready|given|done)", said.out, re.MULTILINE) == ["ready", "given", "done"]
    assert "from ready to done: " in said.out
    assert max(map(len, said.out.splitlines())) <= 80


def test_the_same_for_other_programs(shared_place: Place, scheduler: Scheduler) -> None:
    said = shared_place.run("swarm", "explain", KEY, "--json", DASK_SCHEDULER_ADDRESS=scheduler.address)
    facts = json.loads(said.out)
    assert (facts["kind"], facts["state"]) == ("task", "forgotten")
    assert [event["what"] for event in facts["events"]] == ["ready", "given", "done"]
    assert list(facts["names"].values()) == ["ada"]


def test_a_task_whose_result_is_kept_and_one_that_failed(shared_place: Place, scheduler: Scheduler) -> None:
    with Client(scheduler.address, set_as_default=False) as client:
        kept = client.submit(pow, 2, 3, key="kept-1")
        failed = client.submit(divmod, 1, 0, key="failed-1")
        assert (kept.result(timeout=20), type(failed.exception(timeout=20))) == (8, ZeroDivisionError)
        said = shared_place.run("swarm", "explain", "kept-1", "--scheduler", scheduler.address)
        assert (said.code, said.out.split(" took")[0]) == (0, "kept-1 (builtins.pow)"), said.err
        said = shared_place.run("swarm", "explain", "failed-1", "--scheduler", scheduler.address)
        assert said.code == 0, said.err
        assert said.out.startswith("failed-1 (builtins.divmod) failed: ZeroDivisionError")


def test_a_worker(shared_place: Place, scheduler: Scheduler) -> None:
    said = shared_place.run("swarm", "explain", "ada", "--scheduler", scheduler.address)
    assert said.code == 0, said.err
    assert said.out.startswith("ada (tcp://")
    assert "0 of its tasks run; a thread is free." in " ".join(said.out.split())


def test_what_is_not_known(shared_place: Place, scheduler: Scheduler) -> None:
    said = shared_place.run("swarm", "explain", "optoins-paths", "--scheduler", scheduler.address)
    assert (said.code, said.out) == (2, "")
    assert said.complaint.startswith("swarm: error: there is no task or worker 'optoins-paths'")


def test_a_task_of_a_run_in_the_journal(shared_place: Place, scheduler: Scheduler) -> None:
    journal = ("--journal", str(shared_place.folder / "state" / "journal.sqlite"))
    said = shared_place.run("swarm", "explain", KEY, "--run", "latest", *journal)
    assert said.code == 0, said.err
    live = shared_place.run("swarm", "explain", KEY, "--scheduler", scheduler.address)
    assert said.out.splitlines()[:4] == live.out.splitlines()[:4]
    several = shared_place.run("swarm", "explain", "options-", "--run", "options", *journal)
    assert several.code == 2
    assert "begin with 'options-'" in several.complaint


def test_refusals(place: Place) -> None:
    both, alone, none, nobody = place.run_together(
        ("swarm", "explain", "x", "--run", "latest", "--scheduler", "tcp://127.0.0.1:9"),
        ("swarm", "explain", "x", "--journal", "here.sqlite"),
        ("swarm", "explain", "x", "--run", "latest"),
        ("swarm", "explain", "x", "--scheduler", "tcp://127.0.0.1:9"),
    )
    assert "give one of them" in both.complaint
    assert "--journal is for --run" in alone.complaint
    assert "there is no journal at" in none.complaint
    assert "no Dask scheduler answers at tcp://127.0.0.1:9" in nobody.complaint
    assert {said.code for said in (both, alone, none, nobody)} == {1}


def test_plain_dask_cannot_explain(place: Place) -> None:
    with place.scheduler() as scheduler:
        said = place.run("swarm", "explain", "x", "--scheduler", scheduler.address)
    assert said.code == 1
    assert "is plain Dask and can't explain" in said.complaint
