"""Call a station: connect to its socket, and prove to each other who we are."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

from swarm.channels import handshake
from swarm.channels.folder import address
from swarm.channels.link import Shared
from swarm.errors import PeerLostError

BUSY_S = 0.005
"""Until we knock again at a station with too many callers at once."""


async def dial(shared: Shared, path: Path, peer_id: str, session: bytes) -> tuple[socket.socket, handshake.Agreed]:
    """A socket to the station, and what both have agreed on.

    Raises
    ------
    PeerLostError
        Nobody listens there.
    ChannelError
        It does not trust us, or we it.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        with address(path) as where:
            # Not loop.sock_connect: it takes EAGAIN, by which a Unix socket says "later", for "under way".
            while True:
                try:
                    sock.connect(where)
                    break
                except BlockingIOError:
                    await asyncio.sleep(BUSY_S)
                except (FileNotFoundError, ConnectionRefusedError):
                    raise PeerLostError(f"station {peer_id} has ended: nobody listens at {path}") from None
        agreed = await handshake.call(sock, shared.token, shared.id, peer_id, session, encrypt=shared.options.encrypt)
    except BaseException:
        sock.close()
        raise
    return sock, agreed
