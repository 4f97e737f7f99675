"""`swarm status` and `swarm run --address` where there is no scheduler, or something else."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

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


@pytest.mark.parametrize("command", COMMANDS)
def test_nobody_listens(place: Place, command: tuple[str, ...]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        address = f"tcp://127.0.0.1:{closed.getsockname()[1]}"
    said = place.run(*command, address)
    assert said.code == 1
    assert said.complaint.startswith(f"swarm: error: no Dask scheduler answers at {address} (Timed out trying ")


@pytest.mark.parametrize("command", COMMANDS)
def test_an_address_that_is_none(place: Place, command: tuple[str, ...]) -> None:
    for address in ("http://127.0.0.1:8787", "nonsense"):
        said = place.run(*command, address)
        assert said.code == 1
        assert said.complaint.startswith(f"swarm: error: '{address}' is no address of a Dask scheduler (")
        assert said.complaint.endswith("it looks like tcp://host:8786")


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("server", "why"),
    [
        (web_server, "something listens there, but it does not answer as Dask does within"),
        (chatterbox, "what answers there does not speak Dask"),
    ],
)
def test_a_server_of_another_kind(place: Place, server: object, why: str, command: tuple[str, ...]) -> None:
    assert callable(server)
    with server() as address:
        said = place.run(*command, address)
    assert said.code == 1
    assert said.complaint.startswith(f"swarm: error: no Dask scheduler answers at {address} ({why}")


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
