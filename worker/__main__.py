"""`python -m worker` is `transload`."""

from worker.cli import main

main()
