"""All resources of a complete bundle as one archive: the same members give the same bytes, on every worker.

Members come as streams and the archive goes out as one; nothing here knows a store, a queue or the ledger. `archive.py` is the
way in.
"""
