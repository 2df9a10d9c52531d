"""IAM's policy documents: filled in, taken apart, and judged by. Used by tests/support/iam_front.py and the tests of docs/iam.

What IAM evaluates: https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_evaluation-logic.html, for identity-based
policies of one account. Everything a document may say and that is not understood here is an error, never an allowance.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

FOLDER: Final = Path(__file__).resolve().parents[2] / "docs" / "iam"


@dataclass(frozen=True, slots=True)
class Ask:
    """What a request needs: an action on a resource, with the facts that conditions look at (by lower-case names)."""

    action: str
    resource: str
    context: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement of a policy."""

    sid: str
    allows: bool
    actions: tuple[str, ...]
    resources: tuple[str, ...]
    conditions: tuple[tuple[str, str, tuple[str, ...]], ...] = ()
    """Operator, key in lower case, values."""

    @classmethod
    def of(cls, said: Mapping[str, Any]) -> "Statement":
        """Raises `ValueError` for what is not understood."""
        if unknown := set(said) - {"Sid", "Effect", "Action", "Resource", "Condition"}:
            raise ValueError(f"not understood: {sorted(unknown)}")
        if said["Effect"] not in {"Allow", "Deny"}:
            raise ValueError(f"no effect: {said['Effect']!r}")
        conditions = [
            (operator, key.lower(), _several(values))
            for operator, keys in said.get("Condition", {}).items()
            for key, values in keys.items()
        ]
        for operator, *_ in conditions:
            if operator not in _OPERATORS:
                raise ValueError(f"not understood: the operator {operator}")
        return cls(
            said["Sid"],
            said["Effect"] == "Allow",
            _several(said["Action"]),
            _several(said["Resource"]),
            tuple(conditions),
        )

    def applies(self, ask: Ask) -> bool:
        return (
            any(_like(pattern.lower(), ask.action.lower()) for pattern in self.actions)
            and any(_like(pattern, ask.resource) for pattern in self.resources)
            and all(
                _OPERATORS[operator](ask.context.get(key), values)
                for operator, key, values in self.conditions
            )
        )

    def without(self, action: str) -> "Statement":
        return replace(self, actions=tuple(each for each in self.actions if each != action))


Policy = tuple[Statement, ...]


def policy(name: str, values: Mapping[str, str]) -> Policy:
    """The file of that name, its placeholders replaced by `values`."""
    text = (FOLDER / f"{name}.json").read_text(encoding="utf-8")
    for placeholder in sorted(values, key=len, reverse=True):
        text = re.sub(rf"(?<![A-Z])(?<![A-Z]-){placeholder}(?!-?[A-Z])", values[placeholder], text)
    document = json.loads(text)
    if document.keys() != {"Version", "Statement"} or document["Version"] != "2012-10-17":
        raise ValueError(f"{name}: not a policy of today")
    return tuple(Statement.of(each) for each in document["Statement"])


def permits(policies: Iterable[Statement], ask: Ask) -> bool:
    """A statement allows it, and none denies it."""
    effects = {statement.allows for statement in policies if statement.applies(ask)}
    return effects == {True}


def lessened(whole: Policy) -> Iterator[tuple[str, str, Policy]]:
    """Every action of every allowance, and what is left of the policy without it: `Sid`, action, policy."""
    for place, statement in enumerate(whole):
        if statement.allows:
            for action in statement.actions:
                yield (
                    statement.sid,
                    action,
                    (*whole[:place], statement.without(action), *whole[place + 1 :]),
                )


def narrowed(whole: Policy) -> Iterator[tuple[str, str, Policy]]:
    """Every resource of every allowance that has several, and what is left of the policy without it."""
    for place, statement in enumerate(whole):
        if statement.allows and len(statement.resources) > 1:
            for resource in statement.resources:
                fewer = replace(
                    statement, resources=tuple(each for each in statement.resources if each != resource)
                )
                yield statement.sid, resource, (*whole[:place], fewer, *whole[place + 1 :])


def _several(value: str | Sequence[str]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)


def _like(pattern: str, value: str) -> bool:
    """`*` is any text, also with `/` and `:` in it, and `?` one character."""
    parts = [".*" if part == "*" else "." if part == "?" else re.escape(part) for part in pattern]
    return re.fullmatch("".join(parts), value, re.DOTALL) is not None


_OPERATORS: Final[Mapping[str, Callable[[str | None, tuple[str, ...]], bool]]] = MappingProxyType(
    {
        "Bool": lambda found, values: found in values,
        "Null": lambda found, values: str(found is None).lower() in values,
        "StringEquals": lambda found, values: found in values,
        "StringLike": lambda found, values: found is not None and any(_like(each, found) for each in values),
    }
)
"""https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_elements_condition_operators.html"""
