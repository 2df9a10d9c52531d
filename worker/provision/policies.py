"""Bucket policies and lifecycle rules: which parts of a document are ours, and how ours are laid over those of others.

Pure. Called by worker/provision/buckets.py and worker/provision/wanted.py.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from worker.provision.plan import NONE
from worker.provision.settings import LifecyclePolicy

Statement = Mapping[str, Any]
Rule = Mapping[str, Any]

OURS: Final = "Transload"
"""How the Sid of a statement of ours begins; it has letters and digits only."""
OUR_RULES: Final = "transload-"
"""How the ID of a lifecycle rule of ours begins."""


def public_read(bucket: str, partition: str) -> Statement:
    """Everybody may read every object, and list nothing."""
    return {
        "Sid": f"{OURS}PublicRead",
        "Effect": "Allow",
        "Principal": "*",
        "Action": "s3:GetObject",
        "Resource": f"arn:{partition}:s3:::{bucket}/*",
    }


def statements_of(document: str) -> tuple[Statement, ...]:
    """The statements of a policy document, marked as ours. Raises `ValueError` for what is no policy."""
    try:
        content = json.loads(document)
    except ValueError as exc:
        raise ValueError(f"is not JSON ({exc})") from exc
    found = content.get("Statement") if isinstance(content, dict) else None
    statements = [found] if isinstance(found, dict) else found
    if not isinstance(statements, list) or not all(isinstance(each, dict) for each in statements):
        raise ValueError("is no policy document; it has to be an object with a Statement")
    ours = tuple(
        {**each, "Sid": f"{OURS}{str(each.get('Sid') or number).removeprefix(OURS)}"}
        for number, each in enumerate(statements)
    )
    if len({each["Sid"] for each in ours}) < len(ours):
        raise ValueError("has two statements with the same Sid; give each its own")
    return ours


def is_public(statement: Statement) -> bool:
    """Whether it lets everybody in, on no condition. What conditions let in is for S3's own block to judge."""
    principal = statement.get("Principal", {})
    named = principal.get("AWS", ()) if isinstance(principal, dict) else principal
    everybody = "*" in ([named] if isinstance(named, str) else named)
    return (
        statement.get("Effect") == "Allow"
        and (everybody or "NotPrincipal" in statement)
        and not statement.get("Condition")
    )


def split(statements: Sequence[Statement]) -> tuple[list[Statement], list[Statement]]:
    """Ours, and those of others."""
    ours = [each for each in statements if str(each.get("Sid", "")).startswith(OURS)]
    return ours, [each for each in statements if each not in ours]


def described(statements: Sequence[Statement]) -> str:
    """Statements as a line of canonical JSON, in which S3's own rewriting of lists makes no difference."""
    plain = [_plain(each) for each in sorted(statements, key=lambda each: str(each.get("Sid")))]
    return json.dumps(plain, sort_keys=True) if plain else NONE


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [_plain(item) for item in value]
        return items[0] if len(items) == 1 else sorted(items, key=str)
    return value


def lifecycle_rules(policy: LifecyclePolicy | None, abort_days: int) -> list[Rule]:
    """Ours, as S3 has them."""
    everything = {"Status": "Enabled", "Filter": {"Prefix": ""}}
    rules: list[Rule] = [
        {
            "ID": f"{OUR_RULES}abort-incomplete",
            **everything,
            "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": abort_days},
        }
    ]
    if policy is not None:
        rule: dict[str, Any] = {"ID": f"{OUR_RULES}lifecycle", **everything}
        if policy.transitions:
            rule["Transitions"] = [
                {"Days": each.days, "StorageClass": each.storage_class} for each in policy.transitions
            ]
        if policy.expiration is not None:
            rule["Expiration"] = {"Days": policy.expiration.days}
        rules.append(rule)
    return rules


def split_rules(rules: Sequence[Rule]) -> tuple[list[Rule], list[Rule]]:
    """Ours, and those of others."""
    ours = [rule for rule in rules if str(rule.get("ID", "")).startswith(OUR_RULES)]
    return ours, [rule for rule in rules if rule not in ours]


def rules_described(rules: Sequence[Rule]) -> str:
    """Rules of ours in words; a rule that somebody else has changed reads otherwise."""
    return "; ".join(sorted(_rule_described(rule) for rule in rules)) or NONE


def _rule_described(rule: Rule) -> str:
    words = [
        f"{each.get('StorageClass')} after {each.get('Days', each.get('Date'))} days"
        for each in sorted(rule.get("Transitions", ()), key=lambda each: str(each.get("Days")).zfill(6))
    ]
    for name, said in (
        ("Expiration", "expire"),
        ("AbortIncompleteMultipartUpload", "abort incomplete uploads"),
    ):
        if name in rule:
            days = rule[name].get("Days", rule[name].get("DaysAfterInitiation"))
            words.append(f"{said} after {days} days" if days is not None else f"{said}: {rule[name]}")
    # S3 may say either for "everything".
    scope = rule.get("Filter") or {"Prefix": rule.get("Prefix", "")}
    if scope != {"Prefix": ""}:
        words.append(f"only {json.dumps(scope, sort_keys=True)}")
    words += [name for name in rule if name.startswith("Noncurrent")]
    if rule.get("Status") != "Enabled":
        words.append("disabled")
    return f"{rule.get('ID')}: {', '.join(words)}"
