"""The station of a process: where the channels to other processes of this host begin and end."""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from swarm.channels import folder as folders
from swarm.channels import handshake, security
from swarm.channels.connection import Connection
from swarm.channels.handshake import ID_BYTES, OnlyLookedError, PeerInfo
from swarm.channels.incoming import Incoming
from swarm.channels.link import HANDSHAKE_S, OnFrame, Options, Shared
from swarm.channels.messages import Priority
from swarm.channels.outgoing import Outgoing
from swarm.errors import ChannelError, PeerLostError

__all__ = ["Options", "PeerInfo", "Station"]

log = logging.getLogger(__name__)

MAX_STRANGERS = 64
"""Callers that have not proved who they are; more have to wait."""
REMEMBER_S = 60.0
"""How long a link that broke is remembered, so that it goes on where it was."""


class Station:
    """Sends frames to other stations of this host, and takes theirs. To be used on one event loop.

    Parameters
    ----------
    folder
        Where the sockets of all stations are; `swarm.channels.folder.station_folder()`.
    token
        The secret of the run (`security.new_token`); stations with another one can't talk to this.
    on_frame
        `on_frame(peer, frame, priority)` is called for each frame that comes, and returns, or is awaited for, whether
        the recipient had room. If not, it is asked again: all that follows from that peer with that priority waits, and
        its sender with it.
    on_lost
        `on_lost(peer_id, error)`: a station that this one has sent to has ended, or refuses to talk.
    on_refused
        `on_refused(what)`: someone was turned away; one line for the audit log.
    options
        How channels are.

    Raises
    ------
    ChannelError
        The token is none.
    MissingPackageError
        Encryption is asked for, and `cryptography` is not installed.
    """

    def __init__(
        self,
        folder: Path,
        token: bytes,
        on_frame: OnFrame,
        *,
        on_lost: Callable[[str, ChannelError], None] | None = None,
        on_refused: Callable[[str], None] | None = None,
        options: Options | None = None,
    ) -> None:
        self.id = secrets.token_hex(ID_BYTES)
        self.path = folder / f"{self.id}{folders.SUFFIX}"
        self.refused = 0
        """Callers that were turned away."""
        options = options or Options()
        if options.encrypt:
            security.aead()
        self._token, self._on_frame, self._options = security.check_token(token), on_frame, options
        self._on_lost, self._on_refused = on_lost, on_refused
        self._shared: Shared | None = None
        self._socket: socket.socket | None = None
        self._outgoing: dict[str, Outgoing] = {}
        self._incoming: dict[tuple[str, bytes], Incoming] = {}
        self._strangers: set[socket.socket] = set()
        self._timers: set[asyncio.TimerHandle] = set()

    # -- life -----------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Listen. What is left of stations that have ended is removed.

        Raises
        ------
        ChannelError
            The folder is not safe, or the socket can't be made.
        """
        folders.private_folder(self.path.parent)
        folders.remove_dead(self.path.parent, self.path)
        loop = asyncio.get_running_loop()
        self._socket = folders.listen(self.path)
        self._shared = Shared(self.id, self._token, self._options, self._on_frame, loop)
        loop.add_reader(self._socket.fileno(), self._accept)

    async def close(self) -> None:
        """Close all channels; senders who wait get a `ChannelError`. May be called twice."""
        shared, self._shared = self._shared, None
        if shared is None:
            return
        assert self._socket is not None
        shared.loop.remove_reader(self._socket.fileno())
        self._socket.close()
        self._socket = None
        self.path.unlink(missing_ok=True)
        for timer in self._timers:
            timer.cancel()
        for link in list(self._outgoing.values()):
            link.lose(ChannelError(f"station {self.id} was closed"))
        for tasks in list(shared.tasks):
            tasks.cancel()
        await asyncio.gather(*shared.tasks, return_exceptions=True)
        for sock in self._strangers:  # of tasks that were cancelled before they began
            sock.close()
        for incoming in self._incoming.values():
            incoming.close()
        self._incoming.clear()
        folders.remove_dead(self.path.parent, self.path)

    async def __aenter__(self) -> Station:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # -- out ------------------------------------------------------------------------------------------------------

    async def send(
        self, peer_path: Path | str, peer_id: str, frame: bytes, priority: Priority, timeout_s: float
    ) -> None:
        """Send a frame; return when the peer's station has it, or it is in the shared memory of a peer that lives.

        Frames of one priority arrive in the order in which they were sent, each once.

        Raises
        ------
        ChannelFullError
            The peer made no room within `timeout_s`.
        PeerLostError
            The peer has ended. What it had taken, but not handled, ended with it.
        MessageTooLargeError
            More than `messages.MAX_BYTES`.
        ChannelError
            The peer is of another run, or this station is closed.
        """
        link = self._outgoing.get(peer_id) or self._link(peer_path, peer_id)
        await link.send(frame, priority, timeout_s)

    def send_now(self, peer_id: str, frame: bytes, priority: Priority) -> bool:
        """As `send`, if the frame can go into shared memory at once; False when `send` has to be awaited."""
        link = self._outgoing.get(peer_id)
        return link is not None and link.send_now(frame, priority)

    async def hasten(self, peer_path: Path | str, peer_id: str) -> bool:
        """Move the link to a peer into shared memory now; whether it is there. `status` tells why if not.

        Raises
        ------
        PeerLostError, ChannelError
            As `send`.
        """
        return await (self._outgoing.get(peer_id) or self._link(peer_path, peer_id)).hasten()

    def _link(self, path: Path | str, peer_id: str) -> Outgoing:
        if self._shared is None:
            raise ChannelError(f"station {self.id} is not started, or closed")
        if len(peer_id) != 2 * ID_BYTES or not set(peer_id) <= set("0123456789abcdef"):
            raise ChannelError(f"{peer_id!r} is no id of a station, must be {2 * ID_BYTES} hex digits")
        link = self._outgoing[peer_id] = Outgoing(self._shared, Path(path), peer_id, self._lose)
        return link

    def _lose(self, link: Outgoing, error: ChannelError) -> None:
        if self._outgoing.get(link.peer_id) is link:
            del self._outgoing[link.peer_id]
        if self._shared is not None:
            self._shared.statistics.forget(link.peer_id)
            if isinstance(error, PeerLostError):
                folders.remove_dead(self.path.parent, self.path)
            if self._on_lost is not None:
                self._on_lost(link.peer_id, error)

    # -- in -------------------------------------------------------------------------------------------------------

    def _accept(self) -> None:
        assert self._socket is not None
        assert self._shared is not None
        try:
            sock, _ = self._socket.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError as error:  # no file descriptor left, mostly; the caller stays in the queue
            log.error("station %s can't take a caller: %s", self.id, error.strerror)
            self._rest_from_callers()
            return
        sock.setblocking(False)
        self._strangers.add(sock)
        if len(self._strangers) >= MAX_STRANGERS:
            self._shared.loop.remove_reader(self._socket.fileno())
        self._shared.spawn(self._welcome(sock), "a caller")

    def _rest_from_callers(self) -> None:
        assert self._socket is not None
        assert self._shared is not None
        self._shared.loop.remove_reader(self._socket.fileno())
        self._later(1.0, self._listen_again)

    def _listen_again(self) -> None:
        if self._socket is not None and self._shared is not None and len(self._strangers) < MAX_STRANGERS:
            self._shared.loop.add_reader(self._socket.fileno(), self._accept)

    async def _welcome(self, sock: socket.socket) -> None:
        """Find out who calls, and open the link."""
        try:
            async with asyncio.timeout(HANDSHAKE_S):
                agreed = await handshake.host(sock, self._token, self.id, encrypt=self._options.encrypt)
        except (ChannelError, OSError, TimeoutError) as error:
            sock.close()
            if isinstance(error, OnlyLookedError):  # `folder.is_dead` of another station
                return
            self.refused += 1
            reason = str(error) if isinstance(error, ChannelError) else f"a caller said nothing for {HANDSHAKE_S:g} s"
            log.warning("station %s turned a caller away: %s", self.id, reason)
            if self._on_refused is not None:
                self._on_refused(reason)
            return
        except BaseException:
            sock.close()
            raise
        finally:
            self._strangers.discard(sock)
            self._listen_again()
        self._open(sock, agreed)

    def _open(self, sock: socket.socket, agreed: handshake.Agreed) -> None:
        assert self._shared is not None
        key = (agreed.peer.id, agreed.session)
        incoming = self._incoming.get(key)
        is_known = incoming is not None
        if incoming is None:
            incoming = self._incoming[key] = Incoming(self._shared, agreed.peer, agreed.session)
        link = incoming

        def on_closed(reason: str) -> None:
            link.on_closed(reason)
            self._later(REMEMBER_S, lambda: self._forget(key))

        connection = Connection(
            sock, agreed.keys, is_caller=False, on_record=link.on_record, on_turn=link.on_turn, on_closed=on_closed
        )
        incoming.attach(connection, agreed.peer, agreed.keys, is_known=is_known)

    def _forget(self, key: tuple[str, bytes]) -> None:
        incoming = self._incoming.get(key)
        if incoming is not None and incoming.is_over:
            del self._incoming[key]
            incoming.close()
            if self._shared is not None:
                self._shared.statistics.forget(key[0])

    def _later(self, pause_s: float, do: Callable[[], None]) -> None:
        assert self._shared is not None

        def now() -> None:
            self._timers.discard(timer)
            do()

        timer = self._shared.loop.call_later(pause_s, now)
        self._timers.add(timer)

    # -- what there is to tell ------------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """All links, with their transport and fill, and all flows with counts and latency; as data."""
        statistics = self._shared.statistics.rows() if self._shared is not None else []
        return {
            "id": self.id,
            "path": str(self.path),
            "refused": self.refused,
            "links": [
                *(link.plain() for link in self._outgoing.values()),
                *(link.plain() for link in self._incoming.values()),
            ],
            "flows": statistics,
        }
