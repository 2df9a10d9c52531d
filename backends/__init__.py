"""Bytes at rest. One port (`base`), one adapter a file; knows no message, queue or ledger."""
