"""Where the process begins: `python -m worker` and the console script `transload`.

Only what has to come before the imports of worker/cli.py, which take most of a second.
"""

import os
import signal


def main() -> None:
    """The console script."""
    if os.getpid() == 1:
        # From the first process of a container the kernel withholds every signal it has no handler for: stopped while it starts,
        # or in a command that drains nothing, it would live until it is killed (pid_namespaces(7)).
        signal.signal(signal.SIGTERM, _end)
    from worker import cli  # noqa: PLC0415 - after the handler

    cli.main()


def _end(number: int, _: object) -> None:
    """As the signal itself would: at once, with the status a shell gives to it. `run` puts its own handler in this one's place."""
    os._exit(128 + number)


if __name__ == "__main__":
    main()
