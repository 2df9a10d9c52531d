"""Writes helm/transload/files/dashboard.json from tests/dashboard/panels.py. `make dashboard` runs it; a test compares."""

from tests.dashboard.board import FILE, rendered

if __name__ == "__main__":
    FILE.write_text(rendered(), encoding="utf-8")
    print(f"wrote {FILE}")
