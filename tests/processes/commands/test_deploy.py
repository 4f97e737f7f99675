"""`swarm deploy`: it comes up, heals, says so, and when it ends, for whatever reason, all ends."""

from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
import sys
from pathlib import Path

from swarm.status import fetch
from tests.support.command_line import Place
from tests.support.processes import descendants, marked, wait_until

FREE_PORTS = ("--port", "0", "--dashboard-port", "0", "--workers", "1")
IS_UP = r"Ctrl-C stops them all"


def test_it_ends_by_itself_after_the_time_given(place: Place) -> None:
    quiet = ("--log-level", "error")  # a busy machine raises alerts
    place.write("swarm_config.json", '{"max_agents": 7, "monitoring_interval": "200ms"}')
    with place.start(
        "swarm", "deploy", *FREE_PORTS, *quiet, "--config", "swarm_config.json", "--monitor-duration", "2"
    ) as deploy:
        address = deploy.waits_for(r"scheduler at (\S+); starting 1 worker\n")[1]
        deploy.waits_for(IS_UP)
        assert fetch(address)["settings"]["max_agents"] == 7
        said = deploy.ends()
    assert (said.code, said.out) == (0, "")
    assert re.fullmatch(
        r"starting the scheduler\n"
        rf"scheduler at {address}; starting 1 worker\n"
        r"1 of 1 workers ready\n"
        r"dashboard at http://127\.0\.0\.1:\d+/swarm\n"
        r"Ctrl-C stops them all\n"
        r"all processes have ended\n",
        said.err,
    ), said.err


def test_a_killed_worker_is_started_again_and_ctrl_c_ends_all(place: Place) -> None:
    with place.start("swarm", "deploy", *FREE_PORTS, "--log-directory", "logs") as deploy:
        address = deploy.waits_for(r"scheduler at (\S+);")[1]
        deploy.waits_for(IS_UP)
        nanny = next(p for p in descendants(deploy.process.pid) if "worker" in p.cmdline())
        nanny.kill()
        deploy.waits_for(r"worker-0 ended with signal SIGKILL; its log is logs/worker-0\.log; starts again in 0\.5 s")
        deploy.waits_for(r"worker-0 is started again \(pid \d+\)")
        wait_until(lambda: fetch(address)["totals"]["workers"] == 1, "the new worker has registered", 60)
        deploy.send(signal.SIGINT)
        said = deploy.ends()
    assert said.code == 0
    assert said.err.splitlines()[-1] == "all processes have ended, stopped by SIGINT"
    assert said.err.count("is started again") == 1, "it is said once"
    assert not marked(place.mark)
    assert {log.name for log in (place.folder / "logs").iterdir()} == {"scheduler.log", "worker-0.log"}
    assert "Registered to" in (place.folder / "logs" / "worker-0.log").read_text()


def test_ports_that_are_taken_and_sigterm(place: Place) -> None:
    with place.start("swarm", "deploy", *FREE_PORTS) as deploy:
        port = deploy.waits_for(r"scheduler at tcp://127\.0\.0\.1:(\d+);")[1]
        page = deploy.waits_for(r"dashboard at http://127\.0\.0\.1:(\d+)/swarm")[1]
        for option, taken in (("--port", port), ("--dashboard-port", page)):
            said = place.run("swarm", "deploy", *FREE_PORTS, option, taken)
            assert said.code == 1
            assert re.fullmatch(
                rf"swarm: error: port {taken} on 127\.0\.0\.1 is taken by another process \(pid \d+, dask scheduler\); "
                rf"stop it, or choose another with {option}",
                said.complaint,
            )
        deploy.waits_for(IS_UP)
        deploy.send(signal.SIGTERM)
        said = deploy.ends()
    assert said.code == 0
    assert said.err.splitlines()[-1] == "all processes have ended, stopped by SIGTERM"
    assert not marked(place.mark)


def test_a_signal_while_it_starts(place: Place) -> None:
    with place.start("swarm", "deploy", *FREE_PORTS) as deploy:
        deploy.waits_for("starting 1 worker")
        deploy.send(signal.SIGTERM)
        said = deploy.ends()
    assert said.err.splitlines()[-1] == "all processes have ended, stopped by SIGTERM"
    assert "Traceback" not in said.err
    assert not marked(place.mark)


def test_a_host_that_is_not_this_one(place: Place) -> None:
    said = place.run("swarm", "deploy", *FREE_PORTS, "--host", "192.0.2.77")
    assert said.code == 1
    assert said.complaint == "swarm: error: host 192.0.2.77 is not an address of this machine"


def test_tls_with_certificates_that_end_with_the_cluster(place: Place) -> None:
    with place.start("swarm", "deploy", *FREE_PORTS, "--tls", "--log-level", "error") as deploy:
        address = deploy.waits_for(r"scheduler at (tls://\S+); starting 1 worker\n")[1]
        config = Path(deploy.waits_for(r"clients need DASK_CONFIG=(\S+)\n")[1])
        deploy.waits_for(IS_UP)
        assert [stat.S_IMODE(file.stat().st_mode) for file in config.parent.iterdir()] == [0o600] * 4
        script = f"from distributed import Client; print(Client({address!r}).submit(pow, 2, 5).result())"
        asked = subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "DASK_CONFIG": str(config)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert asked.stdout.strip() == "32", asked.stderr
        deploy.send(signal.SIGTERM)
        assert deploy.ends().code == 0
    assert not config.parent.exists()
