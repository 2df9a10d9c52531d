"""What may be done to a payload between staging and its targets: decoded, taken apart, compressed, encrypted.

Streams in, streams out; nothing here knows a store, a queue or the ledger. `base.py` is the port.
"""
