"""Why a process ended, in one line: from its exit status and from what it said last.  PURE"""

from __future__ import annotations

import re
import signal

_LOG_LINE = re.compile(r"^[\d-]+ [\d:,]+ - \S+ - (?P<level>[A-Z]+) - (?P<message>.*)$")
"""As in `distributed.yaml`: admin.log-format."""

_ENVELOPE = re.compile(r"^(RuntimeError: \w+ failed to start( worker process)?\.?|SystemExit: .*|KeyboardInterrupt)$")
"""What Dask and Python wrap around the exception that says something."""

_FATAL = "Fatal Python error: "
"""Of `faulthandler`, before the stacks of a process that a signal ends."""

_OURS = re.compile(r"^swarm\.errors\.\w+: ")


def outcome(status: int) -> str:
    """An exit status as `subprocess.Popen.returncode` gives it, in words.

    >>> outcome(1), outcome(-9), outcome(-99)
    ('exit code 1', 'signal SIGKILL', 'signal 99')
    """
    if status >= 0:
        return f"exit code {status}"
    try:
        return f"signal {signal.Signals(-status).name}"
    except ValueError:
        return f"signal {-status}"


def reason(output: str) -> str | None:
    r"""The line of a process's output that says best why it ended, or None if it said nothing of use.

    In this order: an error line of swarm's own, one of click's, a fatal error of Python itself, the last exception, the
    last complaint in the log, the last line that is not routine.

    >>> reason("Traceback (most recent call last):\n  File ...\nOSError: disk full\n")
    'OSError: disk full'
    """
    lines = [line.rstrip() for line in output.splitlines() if line.strip()]
    for prefix in ("swarm: error:", "Error:"):
        if told := [line.removeprefix(prefix).strip() for line in lines if line.startswith(prefix)]:
            return told[-1]
    if fatal := [line for line in lines if line.startswith(_FATAL)]:
        return fatal[-1]
    raised = _exceptions(lines)
    if ours := [line for line in raised if _OURS.match(line)]:
        return _OURS.sub("", ours[-1])
    if raised:
        return raised[-1]
    logged = [match for line in lines if (match := _LOG_LINE.match(line))]
    if complaints := [m["message"].strip() for m in logged if m["level"] in ("WARNING", "ERROR", "CRITICAL")]:
        return complaints[-1]
    rest = [line for line in lines if not _LOG_LINE.match(line) and not line.startswith(("Traceback ", " "))]
    return rest[-1] if rest else None


def _exceptions(lines: list[str]) -> list[str]:
    """The last line of each traceback, without the envelopes."""
    found, inside = [], False
    for line in lines:
        if line.startswith("Traceback (most recent call last)"):
            inside = True
        elif inside and not line.startswith(" "):
            inside = False
            if not _ENVELOPE.match(line):
                found.append(line)
    return found
