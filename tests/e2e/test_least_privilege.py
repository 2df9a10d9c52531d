"""The policies of docs/iam, enforced before LocalStack: each is enough for its job, and nothing of it can be left out."""

import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.iam_jobs import JOBS
from tests.support.iam_policies import lessened, narrowed, permits, policy
from tests.support.iam_world import iam_world
from tests.support.localstack import LocalStackEndpoint


def _each_action() -> Iterator[tuple[str, str, str]]:
    """Policy, `Sid` and action."""
    for name in JOBS:
        for sid, action, _ in lessened(policy(name, {})):
            yield name, sid, action


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if job.costly else name for name, job in JOBS.items()]
)
async def test_case_110_a_policy_is_enough_and_no_more(
    name: str, localstack: LocalStackEndpoint, tmp_path: Path
) -> None:
    """What the job asked for is asked again of the policy without each of its actions and resources."""
    job = JOBS[name]
    async with iam_world(localstack, tmp_path) as world:
        await job.prepare(world)
        whole = policy(name, world.values)
        others = [statement for each in job.beside for statement in policy(each, world.values)]
        world.front.policies[name] = (*whole, *others)
        await job.do(world)
        asked = [ask for identity, ask in world.front.asked if identity == name]
    assert world.front.denied == []
    assert asked
    needless = [
        f"{sid}: {what}"
        for sid, what, fewer in (*lessened(whole), *narrowed(whole))
        if all(permits((*fewer, *others), ask) for ask in asked)
    ]
    assert needless == [], "nothing that the job does needs these"


@pytest.mark.slow
@pytest.mark.parametrize(("name", "sid", "action"), [*_each_action()])
async def test_case_110_the_error_names_the_action_that_is_missing(
    name: str, sid: str, action: str, localstack: LocalStackEndpoint, tmp_path: Path
) -> None:
    job = JOBS[name]
    async with iam_world(localstack, tmp_path) as world:
        await job.prepare(world)
        fewer = next(each for *of, each in lessened(policy(name, world.values)) if of == [sid, action])
        others = [statement for each in job.beside for statement in policy(each, world.values)]
        world.front.policies[name] = (*fewer, *others)
        with pytest.raises(Exception) as raised:  # noqa: PT011 - of many kinds, judged by what they say
            await job.do(world)
    assert world.front.denied
    said = "".join(traceback.format_exception_only(raised.value))
    assert action.lower() in said.lower()
