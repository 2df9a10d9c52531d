"""A front before LocalStack that asks IAM's policies first, which LocalStack itself does not. Used by the tests of docs/iam.

A caller is known by its access key. What its policies do not permit is refused in the words of the service asked, and
whatever else AWS makes of permissions is done here: a missing object is `404` for those only who may list the bucket
(https://docs.aws.amazon.com/AmazonS3/latest/API/API_GetObject.html), and S3, SQS and Secrets Manager ask KMS in the caller's name. S3's own
refusals say no more than `Access Denied`, as they do to callers of another account; those of the other services name the action.

Signatures are not verified.
"""

import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from io import BytesIO
from typing import Final
from xml.sax.saxutils import escape

import aiohttp
from aiohttp import web
from yarl import URL

from tests.support.iam_policies import Ask, Policy, permits
from tests.support.iam_requests import Request, UnknownRequest, asks_of, list_bucket

ACCOUNT: Final = "000000000000"
"""LocalStack's, for whoever calls itself `test`."""

_HOP: Final = frozenset({"host", "content-length", "transfer-encoding", "expect", "connection", "keep-alive"})


@dataclass(slots=True)
class IamFront:
    """What the tests set and see."""

    upstream: str
    url: str = ""
    policies: dict[str, Policy] = field(default_factory=dict)
    """By access key. Nobody else may do anything."""
    keys: dict[str, str] = field(default_factory=dict)
    """The KMS key that a bucket, queue or secret is encrypted with: all by their ARNs."""
    asked: list[tuple[str, Ask]] = field(default_factory=list)
    """Everything that was needed so far, and whose request it was."""
    denied: list[Ask] = field(default_factory=list)
    roles: dict[str, str] = field(default_factory=dict)
    """Whose policies a role has: access key by the role's ARN."""

    def permits(self, identity: str, ask: Ask) -> bool:
        return permits(self.policies.get(identity, ()), ask)

    def missing(self, request: Request) -> Ask | None:
        """The first thing that the request needs and may not have."""
        for ask in asks_of(request, ACCOUNT, self.keys):
            self.asked.append((request.identity, ask))
            if not self.permits(request.identity, ask):
                self.denied.append(ask)
                return ask
        return None


@asynccontextmanager
async def iam_front(upstream: str) -> AsyncIterator[IamFront]:
    """Run a front before LocalStack at `upstream` on a free port of loopback."""
    front = IamFront(upstream)
    async with aiohttp.ClientSession(auto_decompress=False) as session:

        async def serve(incoming: web.Request) -> web.StreamResponse:
            body = await incoming.read()
            headers = {name.lower(): value for name, value in incoming.headers.items()}
            try:
                request = Request.of(incoming.method, incoming.raw_path, headers, body)
                if (ask := front.missing(request)) is not None:
                    return _refusal(request, ask)
            except UnknownRequest as exc:
                return web.Response(status=501, text=f"nobody has said what this needs: {exc}")
            return await _handed_on(front, session, request)

        application = web.Application(client_max_size=1 << 28)
        application.router.add_route("*", "/{path:.*}", serve)
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        front.url = "http://{}:{}".format(*runner.addresses[0][:2])
        try:
            yield front
        finally:
            await runner.cleanup()


async def _handed_on(front: IamFront, session: aiohttp.ClientSession, request: Request) -> web.StreamResponse:
    headers = {name: value for name, value in request.headers.items() if name not in _HOP}
    # LocalStack tells the account by the access key.
    headers["authorization"] = headers["authorization"].replace(
        f"Credential={request.identity}/", "Credential=test/"
    )
    query = f"?{request.raw_query}" if request.raw_query else ""
    target = URL(f"{front.upstream}{request.path}{query}", encoded=True)
    async with session.request(
        request.method, target, headers=headers, data=BytesIO(request.body), allow_redirects=False
    ) as answer:
        content = await answer.read()
        kept = [(name, value) for name, value in answer.headers.items() if name.lower() not in _HOP]
    if answer.status == 404 and request.service == "s3" and (hidden := _hidden(front, request)):
        return _refusal(request, hidden)
    if request.operation == "AssumeRole" and (found := re.search(rb"<AccessKeyId>(\w+)<", content)):
        (role,) = (ask.resource for ask in asks_of(request, ACCOUNT, {}))
        front.policies[found[1].decode()] = front.policies[front.roles[role]]
    response = web.Response(status=answer.status, body=content)
    for name, value in kept:
        response.headers[name] = value
    if request.method == "HEAD" and "content-length" in answer.headers:
        response.headers["Content-Length"] = answer.headers["content-length"]
    return response


def _hidden(front: IamFront, request: Request) -> Ask | None:
    """What keeps the caller from hearing that an object is missing."""
    bucket, key = request.place
    if not key or request.method not in {"GET", "HEAD"}:
        return None
    ask = list_bucket(bucket)
    front.asked.append((request.identity, ask))
    if front.permits(request.identity, ask):
        return None
    front.denied.append(ask)
    return ask


def _refusal(request: Request, ask: Ask) -> web.Response:
    """https://docs.aws.amazon.com/IAM/latest/UserGuide/troubleshoot_access-denied.html."""
    text = (
        f"User: arn:aws:iam::{ACCOUNT}:user/{request.identity} is not authorized to perform: {ask.action} on resource: "
        f"{ask.resource} because no identity-based policy allows the {ask.action} action"
    )
    match request.service:
        case "s3":
            said = text if ask.action.startswith("kms:") else "Access Denied"
            content = f"<Error><Code>AccessDenied</Code><Message>{escape(said)}</Message></Error>"
            return web.Response(
                status=403, content_type="application/xml", text="" if request.method == "HEAD" else content
            )
        case "sqs" if ask.action.startswith("kms:"):
            return _json("com.amazonaws.sqs#KmsAccessDenied", text, 400, "KMS.AccessDeniedException")
        case "sqs":
            return _json(
                "com.amazonaws.sqs#AccessDeniedException",
                text.replace(ask.action, ask.action.lower()),
                403,
                "AccessDenied",
            )
        case "sts":
            content = f"<Error><Type>Sender</Type><Code>AccessDenied</Code><Message>{escape(text)}</Message></Error>"
            return web.Response(
                status=403,
                content_type="text/xml",
                text=f"<ErrorResponse>{content}</ErrorResponse>",
            )
        case "monitoring":
            return _json("AccessDenied", text, 403, "AccessDenied")
    return _json("AccessDeniedException", text, 400)


def _json(kind: str, text: str, status: int, query_code: str = "") -> web.Response:
    headers = {"x-amzn-query-error": f"{query_code};Sender"} if query_code else {}
    content = json.dumps({"__type": kind, "message": text})
    return web.Response(
        status=status, text=content, content_type="application/x-amz-json-1.0", headers=headers
    )
