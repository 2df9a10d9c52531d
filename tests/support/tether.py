"""Runs a command that the kernel kills when the test run ends, however that ends. Used by tests/support/workers.py.

    python tether.py PARENT COMMAND…

The command replaces this script, so its pid is the one that was started. PR_SET_PDEATHSIG survives the exec
(https://man7.org/linux/man-pages/man2/PR_SET_PDEATHSIG.2const.html); the signal comes when the *thread* that started the
command ends. Standard library only.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main(parent: int, command: list[str]) -> None:
    """Tether this process to `parent`, then become `command`."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")
    if os.getppid() == parent:  # else it ended before the tether was tied
        os.execv(command[0], command)  # noqa: S606 - the command is the test's own


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
