"""A cluster of real processes: it starts, heals, stops in every way there is, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import textwrap
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import pytest
from distributed.comm.core import CommClosedError
from distributed.core import rpc

from swarm import leftovers
from swarm.deploy.folder import PREFIX, PrivateFolder
from swarm.deploy.local import LocalProcesses
from swarm.deploy.ports import check_port_is_free, in_use, listener
from swarm.deploy.restart import RestartPolicy
from swarm.deploy.spec import ClusterSpec
from swarm.errors import PortInUseError, ProcessError
from tests.support.processes import descendants, leaving_nothing, marked, wait_gone, wait_until

IMPATIENT = RestartPolicy(first_delay_s=0.1)


def small(**changes: Any) -> ClusterSpec:
    """One bare worker without a dashboard on stock Dask: the quickest to start."""
    defaults = {"workers": 1, "nanny": False, "dashboard_port": None, "scheduler_preload": (), "worker_preload": ()}
    return ClusterSpec(**{**defaults, **changes})


def ask(address: str, question: str = "identity") -> Any:
    async def asking() -> Any:
        async with rpc(address, timeout=5) as scheduler:  # type: ignore[no-untyped-call]
            return await getattr(scheduler, question)()

    return asyncio.run(asking())


def status_of(page: str) -> int:
    with urllib.request.urlopen(page, timeout=10) as answer:
        return int(answer.status)


def workers_of(cluster: LocalProcesses) -> set[str]:
    try:
        return {worker["name"] for worker in ask(cluster.address)["workers"].values()}
    except OSError:  # the scheduler is on its way
        return set()


@pytest.fixture(autouse=True)
def mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """All temporary folders are made in one of the test's own; neither in there nor elsewhere is anything left."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    with leaving_nothing() as mark:
        yield mark
    assert not list(folder.glob(f"{PREFIX}*/lock")), "a folder has neither been removed nor kept on purpose"


@pytest.fixture
def preload(tmp_path: Path) -> Any:
    """Write a preload with this source; returns its path."""

    def write(source: str) -> str:
        file = tmp_path / f"preload_{len(list(tmp_path.iterdir()))}.py"
        file.write_text(textwrap.dedent(source))
        return str(file)

    return write


@contextlib.contextmanager
def script(source: str, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A process of Python that has `cluster = LocalProcesses(spec, …)` at hand and prints its progress."""
    head = """
        import os, signal, sys, time
        from swarm.deploy.local import LocalProcesses
        from swarm.deploy.signals import stopping_on_signals
        from swarm.deploy.spec import ClusterSpec
        spec = ClusterSpec(dashboard_port=None, scheduler_preload=(), **{options!r})
        cluster = LocalProcesses(spec, on_progress=lambda line: print(line, flush=True))
    """
    options = {"workers": 1, "nanny": False, "worker_preload": (), **options}
    code = textwrap.dedent(head).format(options=options) + textwrap.dedent(source)
    with subprocess.Popen(
        [sys.executable, "-W", "error::ResourceWarning", "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def read_until(process: subprocess.Popen[str], text: str) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if text in line:
            return
    assert process.stderr is not None
    pytest.fail(f"the script ended before it said {text!r}: {process.stderr.read()}")


# -- start and stop ------------------------------------------------------------------------------------------------


async def test_start_and_stop_within_a_running_loop(tmp_path: Path) -> None:
    told: list[str] = []
    spec = small(workers=2, nanny=True, dashboard_port=0, log_directory=tmp_path / "logs")
    with LocalProcesses(spec, on_progress=told.append) as cluster:
        assert list(cluster.processes) == ["scheduler", "worker-0", "worker-1"]
        assert cluster.poll() == []
        async with rpc(cluster.address) as scheduler:  # type: ignore[no-untyped-call]
            identity = await scheduler.identity()
        assert {worker["name"] for worker in identity["workers"].values()} == {"worker-0", "worker-1"}
        assert cluster.dashboard_link is not None
        assert await asyncio.to_thread(status_of, cluster.dashboard_link) == 200
        assert all(os.getsid(pid) == pid for pid in cluster.processes.values())
    cluster.close()
    assert cluster.processes == {}
    assert told == [
        "starting the scheduler",
        f"scheduler at {cluster.address}; starting 2 workers",
        "2 of 2 workers ready",
    ]
    logs = tmp_path / "logs"
    assert stat.S_IMODE(logs.stat().st_mode) == 0o700
    modes = {log.name: stat.S_IMODE(log.stat().st_mode) for log in logs.iterdir()}
    assert modes == {"scheduler.log": 0o600, "worker-0.log": 0o600, "worker-1.log": 0o600}
    assert list((tmp_path / "tmp").iterdir()) == []


def test_what_we_can_import_and_have_configured_reaches_the_processes(
    preload: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "only_here.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    source = """
        import os, dask, only_here
        def dask_setup(worker):
            worker.metrics["seen"] = lambda w: [dask.config.get("swarm-test"), os.environ["A"], os.environ["B"],
                                                "SWARM_LEASH" in os.environ]
    """
    spec = small(worker_preload=(preload(source),), env={"A": "all", "B": "all"}, worker_env={0: {"B": "one"}})
    with dask.config.set({"swarm-test": 17}), LocalProcesses(spec) as cluster:
        (worker,) = ask(cluster.address)["workers"].values()
    assert list(worker["metrics"]["seen"]) == [17, "all", "one", False]


def test_a_stubborn_worker_and_what_it_has_started_are_killed(preload: Any, mark: str) -> None:
    source = """
        import signal, subprocess
        def dask_setup(worker):
            subprocess.Popen(["sleep", "600"])
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
    """
    with LocalProcesses(small(worker_preload=(preload(source),))) as cluster:
        assert any(process.name() == "sleep" for process in marked(mark))
        cluster.close(grace_s=0.3)
        assert marked(mark) == []


def test_a_script_that_forgets_to_close_leaves_nothing() -> None:
    with script("cluster.start()") as process:
        read_until(process, "1 of 1 workers ready")
        assert process.wait(10) == 0


# -- what keeps it from starting -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("option", "key"), [("--port", "port"), ("--dashboard-port", "dashboard_port")])
def test_a_taken_port_is_named_with_its_owner(option: str, key: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = rf"port {port} on 127\.0\.0\.1 is taken by another process \(pid {os.getpid()}, .*with {option}$"
        with pytest.raises(PortInUseError, match=said):
            LocalProcesses(small(**{key: port})).start()


def test_a_dashboard_port_lost_between_the_check_and_the_start_is_an_error(preload: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    # Dask imports the file twice.
    grab = f"import socket, sys; sys.taken = vars(sys).get('taken') or socket.create_server(('127.0.0.1', {port}))"
    with pytest.raises(PortInUseError, match=rf"port {port} on 127\.0\.0\.1 is taken .*dask scheduler"):
        LocalProcesses(small(dashboard_port=port, scheduler_preload=(preload(grab),))).start()


def test_a_host_that_is_not_ours() -> None:
    with pytest.raises(ProcessError, match=r"host 192\.0\.2\.1 is not an address of this machine"):
        check_port_is_free("192.0.2.1", 0, option="--port")
    with pytest.raises(ProcessError, match="host 'no such host' has no address"):
        check_port_is_free("no such host", 0, option="--port")


def test_an_owner_that_the_system_does_not_tell() -> None:
    assert listener(1) is None
    assert str(in_use("port 1 on x", None, "--port")) == (
        "port 1 on x is taken by another process; stop it, or choose another with --port"
    )


@pytest.mark.parametrize("nanny", [True, False])
def test_a_worker_that_cannot_start_says_why_and_where_to_read_more(nanny: bool) -> None:
    with pytest.raises(ProcessError) as error:
        LocalProcesses(small(worker_preload=("no_such_module",), nanny=nanny)).start()
    said = re.fullmatch(
        r"worker-0 did not start: exit code 1 \(ModuleNotFoundError: No module named 'no_such_module'\); "
        r"its log is (.*)",
        str(error.value),
    )
    assert said, error.value
    log = Path(said[1])
    assert "Traceback" in log.read_text()
    assert {entry.name for entry in log.parent.iterdir()} == {"scheduler.log", "worker-0.log"}


def test_an_error_line_of_swarm_is_the_reason(preload: Any, tmp_path: Path) -> None:
    source = """
        import sys
        def dask_setup(scheduler):
            print("swarm: error: period_s is 0, must be positive", file=sys.stderr)
            sys.exit(2)
    """
    logs = tmp_path / "logs"
    logs.mkdir()
    (logs / "scheduler.log").write_text("swarm: error: an older start\n")
    with pytest.raises(ProcessError) as error:
        LocalProcesses(small(scheduler_preload=(preload(source),), log_directory=logs)).start()
    assert str(error.value) == (
        f"scheduler did not start: exit code 2 (period_s is 0, must be positive); its log is {logs}/scheduler.log"
    )
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_start_that_takes_too_long_is_given_up(preload: Any) -> None:
    never = preload("import threading; threading.Event().wait()")
    with pytest.raises(ProcessError, match=r"^scheduler was not ready within 1\.5 s; its log is .*scheduler\.log"):
        LocalProcesses(small(scheduler_preload=(never,))).start(timeout_s=1.5)


def test_a_folder_for_logs_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ProcessError, match=r"can't make the folder .*/file/logs: Not a directory"):
        LocalProcesses(small(log_directory=tmp_path / "file" / "logs")).start()


# -- supervision ---------------------------------------------------------------------------------------------------


def test_a_killed_nanny_takes_its_worker_along_and_is_started_again() -> None:
    with LocalProcesses(small(nanny=True), policy=IMPATIENT) as cluster:
        nanny = cluster.processes["worker-0"]
        orphans = descendants(nanny)
        assert orphans, "the nanny has a worker process"
        os.kill(nanny, signal.SIGKILL)
        changes = wait_until(cluster.poll, "the end is noticed")
        assert [(change.role, change.what) for change in changes] == [("worker-0", "ended")]
        assert "worker-0 ended with signal SIGKILL" in changes[0].message
        wait_gone(orphans, 2)
        assert wait_until(cluster.poll, "a restart")[0].what == "restarted"
        wait_until(lambda: workers_of(cluster) == {"worker-0"}, "the new worker is registered")
        assert cluster.processes["worker-0"] != nanny


def test_a_killed_scheduler_is_started_again_where_it_was() -> None:
    with LocalProcesses(small(), policy=IMPATIENT) as cluster:
        address, before = cluster.address, cluster.processes
        os.kill(before["scheduler"], signal.SIGKILL)
        (change,) = wait_until(cluster.poll, "the end is noticed")
        assert (change.role, change.what) == ("scheduler", "ended")
        assert "what it knew is lost" in change.message
        wait_until(lambda: cluster.poll() is not None and workers_of(cluster) == {"worker-0"}, "all is well again")
        assert cluster.address == address
        assert cluster.processes["scheduler"] != before["scheduler"]


def test_a_worker_that_keeps_ending_is_given_up() -> None:
    policy = RestartPolicy(first_delay_s=0.05, failures=2)
    with LocalProcesses(small(), policy=policy) as cluster:
        os.kill(cluster.processes["worker-0"], signal.SIGKILL)
        wait_until(lambda: any(change.what == "restarted" for change in cluster.poll()), "a restart")
        os.kill(cluster.processes["worker-0"], signal.SIGKILL)
        said = r"^worker-0 ended 2 times within 60 s and is given up, .* signal SIGKILL; its log is (.*)$"
        with pytest.raises(ProcessError, match=said) as error:
            wait_until(cluster.poll, "it is given up")
    log = re.search(said, str(error.value))
    assert log
    assert Path(log[1]).exists()


def test_a_shutdown_on_request_is_not_undone() -> None:
    with LocalProcesses(small(), policy=IMPATIENT) as cluster:
        with contextlib.suppress(CommClosedError):  # it may end before it has answered
            ask(cluster.address, "terminate")
        changes = wait_until(cluster.poll, "the end is noticed")
        while cluster.processes:
            changes += wait_until(cluster.poll, "the others end as well")
        assert cluster.shut_down
        assert "scheduler" in {change.role for change in changes if change.what == "shut down"}
        assert cluster.poll() == []


# -- signals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", ["starting the scheduler", "starting 1 worker"])
def test_ctrl_c_while_it_starts(moment: str, mark: str, tmp_path: Path) -> None:
    with script("cluster.start()", nanny=True) as process:
        read_until(process, moment)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=10)
        assert process.returncode == -signal.SIGINT, errors
        assert errors.rstrip().endswith("KeyboardInterrupt")
        assert marked(mark) == []
    assert list((tmp_path / "tmp").iterdir()) == []


FOREGROUND = """
    with stopping_on_signals() as stop:
        with cluster:
            while True:
                time.sleep(0.1)
                cluster.poll()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    print("stopped by", stop.signal.name)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_foreground_command_stops_in_good_order(number: signal.Signals, mark: str, tmp_path: Path) -> None:
    with script(FOREGROUND, forward=True) as process:
        read_until(process, "workers ready")
        process.send_signal(number)
        output, errors = process.communicate(timeout=10)
        assert marked(mark) == []
    assert output == f"stopped by {number.name}\n", errors
    assert process.returncode == 0
    assert errors.index("End worker") < errors.index("End scheduler"), "the workers stop first"
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_second_ctrl_c_does_not_wait_for_the_stubborn(preload: Any, mark: str) -> None:
    stubborn = preload(
        """
        import signal
        def dask_setup(worker):
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        """
    )
    source = FOREGROUND.replace("while True:", "print('running', flush=True)\n            while True:")
    with script(source, worker_preload=(stubborn,)) as process:
        read_until(process, "running")
        process.send_signal(signal.SIGINT)
        scheduler_and_worker = len(marked(mark)) - 1
        assert scheduler_and_worker == 2
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1.0)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=5)
        assert marked(mark) == []
    assert output == "stopped by SIGINT\n", errors


@pytest.mark.parametrize("nanny", [True, False])
def test_when_we_are_killed_the_children_end_by_themselves(nanny: bool, mark: str, tmp_path: Path) -> None:
    with script("cluster.start()\ntime.sleep(600)", nanny=nanny) as process:
        read_until(process, "workers ready")
        children = descendants(process.pid)
        assert len(children) >= 2
        process.kill()
        wait_gone(children, 10)
        wait_until(lambda: not marked(mark), "no orphan is left")
    assert [folder.name[: len(PREFIX)] for folder in (tmp_path / "tmp").iterdir()] == [PREFIX]
    PrivateFolder().remove()
    assert list((tmp_path / "tmp").iterdir()) == [], "the next start sweeps up"


def test_a_fork_of_ours_holds_the_leash_no_longer_than_we_do(mark: str) -> None:
    source = """
        cluster.start()
        if os.fork() == 0:
            time.sleep(600)
        print("forked", flush=True)
        time.sleep(600)
    """
    with script(source) as process:
        read_until(process, "forked")
        (fork,) = [child for child in descendants(process.pid) if os.getsid(child.pid) == os.getsid(process.pid)]
        children = [child for child in descendants(process.pid) if child != fork]
        process.kill()
        try:
            wait_gone(children, 10)
            assert fork.is_running()
        finally:
            fork.kill()
            wait_gone([fork])
        PrivateFolder().remove()


def test_an_exit_of_a_fork_does_not_stop_the_cluster() -> None:
    source = """
        cluster.start()
        if (fork := os.fork()) == 0:
            sys.exit()  # runs atexit, which knows of the cluster
        os.waitpid(fork, 0)
        assert cluster.poll() == [] and len(cluster.processes) == 2
        cluster.close()
    """
    with script(source) as process:
        _, errors = process.communicate(timeout=15)
    assert process.returncode == 0, errors


def test_what_killed_processes_shared_on_the_host_is_removed_at_the_end() -> None:
    with LocalProcesses(ClusterSpec(workers=2, nanny=False, dashboard_port=None)) as cluster:
        for role, pid in cluster.processes.items():
            if role != "scheduler":
                os.kill(pid, signal.SIGSTOP)
        cluster.close(grace_s=0.5)
        assert not any(left.dead for left in leftovers.look())
