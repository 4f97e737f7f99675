"""An agent that acts for its host is killed: another acts at once, and finds what it left."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from swarm.agents.kinds.host_seat import HostSeat

HOLDER = """
import pathlib, sys, time
from swarm.agents.kinds.host_seat import HostSeat
seat = HostSeat(pathlib.Path(sys.argv[1]))
assert seat.take()
seat.note({"cores": 3})
print("sits", flush=True)
time.sleep(60)
"""


def test_when_the_holder_is_killed_the_next_sits_at_once_and_finds_the_note(tmp_path: Path) -> None:
    path = tmp_path / "agents" / "thermal"
    with subprocess.Popen([sys.executable, "-c", HOLDER, path], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "sits\n"
        seat = HostSeat(path)
        assert not seat.take()
        holder.kill()
        holder.wait()
        killed_s = time.monotonic()
        assert seat.take()
        assert time.monotonic() - killed_s < 1
        assert seat.noted() == {"cores": 3}
        seat.leave()
