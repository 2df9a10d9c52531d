"""The descriptions of AWS's services, parsed once a process: that is most of what a client costs, and tests make thousands.

Called by tests/conftest.py, by the source of the workers (tests/support/warm.py) and by `make crash`.
"""

import functools

from botocore.loaders import JSONFileLoader, create_loader

SERVICES = ("cloudwatch", "kms", "s3", "sqs", "sts")
KINDS = ("service-2", "endpoint-rule-set-1")
SHARED = ("endpoints", "partitions", "sdk-default-configuration", "_retry")


def remember() -> None:
    """From now on every file is parsed once. Within a session botocore shares what it parsed in the same way."""
    load = functools.cache(JSONFileLoader().load_file)
    JSONFileLoader.load_file = lambda _, path: load(path)


def parse() -> None:
    """What the project's clients will ask for, now."""
    loader = create_loader()
    for name in SHARED:
        loader.load_data(name)
    for service in SERVICES:
        for kind in KINDS:
            loader.load_service_model(service, kind)
