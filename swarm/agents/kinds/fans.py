"""Fans at full speed while a host is hot, where hwmon lets us; else they are the board's.

Source: Documentation/hwmon/sysfs-interface.rst: `pwmN_enable` is 1 for manual control, 2 and up for automatic; `pwmN`
goes from 0 to 255. A fan is only ever made faster, so a process that is killed meanwhile leaves a loud machine, never a
hot one; the next one finds what to give back in the note of the seat.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

MANUAL, FULL = 1, 255


class Fans:
    """The fans of this host whose control can be written.

    Parameters
    ----------
    root
        Directory to take for `/`, for tests.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self._controls = {
            str(control.relative_to(root)): control
            for control in sorted((root / "sys/class/hwmon").glob("hwmon*/pwm*"))
            if control.name.removeprefix("pwm").isdigit()
            and os.access(control, os.W_OK)
            and os.access(_switch(control), os.W_OK)
        }
        self.automatic: dict[str, int] = {}
        """Fan → what its `pwmN_enable` was before we took it: what there is to give back."""
        self.failures: dict[str, str] = {}
        """Fan → why it is not touched any more."""

    @property
    def names(self) -> list[str]:
        return [name for name in self._controls if name not in self.failures]

    def remember(self, noted: Mapping[str, object]) -> None:
        """What somebody before us took, and did not give back; whatever is no fan of this host is passed over."""
        for name, mode in noted.items():
            if name in self._controls and isinstance(mode, int) and MANUAL < mode < 256:
                self.automatic[name] = mode

    def raise_all(self, note: Callable[[dict[str, int]], None]) -> list[str]:
        """Full speed; returns those that it was done for. `note` is told what to give back, before anything changes.

        A fan that is under manual control already is somebody else's, and stays as it is.
        """
        taken = {}
        for name in self.names:
            if name in self.automatic:
                continue
            try:
                mode = int(_switch(self._controls[name]).read_text())
            except (OSError, ValueError) as error:
                self.failures[name] = f"its mode can't be read: {error}"
                continue
            if mode > MANUAL:
                taken[name] = mode
        if not taken:
            return []
        self.automatic |= taken
        note(self.automatic)
        return [name for name in taken if self._raise(name)]

    def give_back(self, note: Callable[[dict[str, int]], None]) -> list[str]:
        """Back to the board's own control; returns those that it was done for."""
        given = []
        for name, mode in list(self.automatic.items()):
            try:
                _switch(self._controls[name]).write_text(f"{mode}\n")
            except OSError as error:
                self.failures[name] = f"can't be given back to the board: {error.strerror}"
                continue  # it stays in the note, and is tried again
            del self.automatic[name]
            given.append(name)
        if given:
            note(self.automatic)
        return given

    def _raise(self, name: str) -> bool:
        """A fan that does not take it goes back at once: under manual control at a low speed it must not stay."""
        control, why = self._controls[name], ""
        try:
            before = int(control.read_text())
            _switch(control).write_text(f"{MANUAL}\n")
            control.write_text(f"{FULL}\n")
            if int(control.read_text()) < before:
                why = "it got slower"
        except (OSError, ValueError) as error:
            why = str(error)
        if why:
            self.failures[name] = f"can't be set to full speed: {why}"
            try:
                _switch(control).write_text(f"{self.automatic[name]}\n")
            except OSError:
                return False  # it stays in the note, and `give_back` tries again
            del self.automatic[name]
        return not why


def _switch(control: Path) -> Path:
    return control.with_name(f"{control.name}_enable")
