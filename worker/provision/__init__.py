"""Buckets and queues as the settings want them: looked at, compared, made and changed. Called by worker/cli_provision.py."""
