"""The process: take, run, record, answer, announce."""
