"""`swarm status` and `swarm run --address` where there is no scheduler, or something else."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

from tests.support.command_line import Place

COMMANDS = (("swarm", "status"), ("swarm", "run", "heat", "--address"))


@contextmanager
def web_server() -> Iterator[str]:
    """Waits for the end of a line, which Dask never sends."""
    with ThreadingHTTPServer(("127.0.0.1", 0), SimpleHTTPRequestHandler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"tcp://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def chatterbox() -> Iterator[str]:
    """Answers to everything with something that Dask can't read."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            while True:
                try:
                    visitor, _ = server.accept()
                except OSError:
                    return
                with visitor:
                    visitor.recv(1000)
                    visitor.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 10)

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            yield f"tcp://127.0.0.1:{server.getsockname()[1]}"
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


def test_nobody_listens_or_somebody_who_does_not_speak_dask(place: Place) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        nowhere = f"tcp://127.0.0.1:{closed.getsockname()[1]}"
    with web_server() as web, chatterbox() as noise:
        reasons = {
            nowhere: "Timed out trying to connect",
            web: "something listens there, but it does not answer as Dask does within",
            noise: "what answers there does not speak Dask",
        }
        cases = [(address, [*command, address]) for address in reasons for command in COMMANDS]
        outcomes = place.run_together(*(command for _, command in cases))
    for (address, _), said in zip(cases, outcomes, strict=True):
        assert said.code == 1
        assert said.complaint.startswith(f"swarm: error: no Dask scheduler answers at {address} ({reasons[address]}")


def test_an_address_that_is_none(place: Place) -> None:
    cases = [
        (address, [*command, address]) for address in ("http://127.0.0.1:8787", "nonsense") for command in COMMANDS
    ]
    for (address, _), said in zip(cases, place.run_together(*(command for _, command in cases)), strict=True):
        assert said.code == 1
        assert said.complaint.startswith(f"swarm: error: '{address}' is no address of a Dask scheduler (")
        assert said.complaint.endswith("it looks like tcp://host:8786")


def test_status_of_plain_dask_changes_nothing_there(place: Place) -> None:
    with place.scheduler() as scheduler:
        for _ in range(2):
            said = place.run("swarm", "status", DASK_SCHEDULER_ADDRESS=scheduler.address)
            assert said.code == 1
            assert said.complaint == (
                f"swarm: error: the scheduler at {scheduler.address} is plain Dask with 0 workers: start them with "
                f'--preload swarm.agents, or run swarm.connect("{scheduler.address}") once'
            )
        assert "Receive client connection" not in scheduler.running.err
