"""Named places around durable side effects, where a test may kill, fail or stall the process. Called by every adapter.

A failpoint is one audit event (https://peps.python.org/pep-0578/): without a hook the interpreter drops it in a few tens of
nanoseconds, so there is nothing to switch off in production. worker/failpoints.py arms them from `TRANSLOAD_FAILPOINTS`.

The rule: one `….before` and one `….after` around everything that outlives a SIGKILL and that somebody else can see.
tests/architecture/test_failpoints.py finds the gaps.
"""

import sys

EVENT = "transload.failpoint"


def failpoint(name: str) -> None:
    """Pass the place called `name`: `<adapter>.<effect>.before` or `.after`. May raise whatever it was armed with."""
    sys.audit(EVENT, name)
