"""Which permission of IAM is missing, for the errors of whatever asks AWS. Used by backends/s3_errors.py and worker/aws.py.

AWS says it in most refusals; where it does not (a HEAD has no body, and callers of other accounts are told less) the adapters name
what the request needs. Of an answer's text only action and resource are repeated: the rest may hold what the request carried.
"""

import re
from typing import Final

_SAID: Final = re.compile(
    r"is not authorized to perform: (?P<action>[a-z0-9-]{1,40}:[A-Za-z0-9]{1,80}) on resource: (?:\"|&quot;)?(?P<resource>arn:[!-~]{1,1200})"
)
"""https://docs.aws.amazon.com/IAM/latest/UserGuide/troubleshoot_access-denied.html"""


def said_missing(text: str) -> str | None:
    """The action and the resource that a refusal names: `kms:Decrypt on arn:aws:kms:…`; None where it names none."""
    found = _SAID.search(text)
    if found is None:
        return None
    resource = re.split(r"\"|&quot;|<", found["resource"])[0]
    return f"{found['action']} on {resource}"


def on_bucket(action: str, bucket: str) -> str:
    """What a request to a bucket of S3 needs, as a refusal tells it."""
    return f"s3:{action} on arn:aws:s3:::{bucket}"


def on_object(action: str, bucket: str, key: object) -> str:
    """What a request to an object of S3 needs."""
    return f"{on_bucket(action, bucket)}/{key}"
