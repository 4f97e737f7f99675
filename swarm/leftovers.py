"""What processes of this user that were killed have left on this host: sockets of stations, and ledgers.

Nothing of it does harm: the next station or ledger in the same place removes it. Whether its owner lives, the kernel
says: nobody listens at the socket, nobody holds a lock of the ledger.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from swarm.channels import folder as stations
from swarm.errors import LedgerError
from swarm.ledger import budget as ledgers

LEDGERS = "ledger-*"


@dataclass(frozen=True, slots=True)
class Left:
    """One kind of thing in its folder."""

    what: str
    folder: Path
    used: int
    """So many are in use."""
    dead: tuple[Path, ...]

    def remove(self) -> int:
        """Remove the dead ones; returns how many, which is fewer where somebody else was faster."""
        if self.what == "ledgers":
            from swarm.ledger.shared import is_dead

            removed = sum(_of_ledger(path, lambda it: is_dead(it, remove=True)) for path in self.dead)
            if removed:
                with suppress(OSError):  # in use, or gone
                    self.folder.rmdir()
            return removed
        removed = 0
        for path in self.dead:
            if stations.is_dead(path):
                with suppress(FileNotFoundError):
                    path.unlink()
                    removed += 1
        return removed


def look() -> Iterator[Left]:
    """Stations and ledgers of this user, where these processes would put them. Changes nothing."""
    from swarm.ledger.shared import is_dead

    yield _sorted("stations", stations.usual_folder(), f"*{stations.SUFFIX}", stations.is_dead)
    yield _sorted("ledgers", ledgers.private_folder(), LEDGERS, lambda path: _of_ledger(path, is_dead))


def sweep() -> int:
    """Remove what is dead of all kinds; returns how many things."""
    return sum(left.remove() for left in look())


def _sorted(what: str, folder: Path, pattern: str, is_dead: Callable[[Path], bool]) -> Left:
    found = sorted(folder.glob(pattern))
    dead = tuple(path for path in found if is_dead(path))
    return Left(what, folder, len(found) - len(dead), dead)


def _of_ledger(path: Path, is_dead: Callable[[Path], bool]) -> bool:
    try:
        return is_dead(path)
    except LedgerError:  # it is gone, or something else that is not ours to remove
        return False
