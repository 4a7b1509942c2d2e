"""Policies: order, globs, keys, hours, params; and files that are refused."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from arc_agent.config.params_schema import read_params
from arc_agent.guard.policy import Action, Policy, Question, Verdict
from arc_agent.guard.policy_file import read_policy
from arc_runtime.config.settings import SettingsError

NOON = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)  # a Monday


def policy(tmp_path: Path, *rules: dict[str, Any], **more: Any) -> Policy:
    """The policy in a file with these rules."""
    named = [{"name": f"r{index}", "action": "allow", **rule} for index, rule in enumerate(rules)]
    file = tmp_path / "policy.yaml"
    file.write_text(yaml.safe_dump({"rules": named, **more}))
    return read_policy(file)


def ask(
    asked: Policy,
    command: str = "a.b",
    params: bytes = b"{}",
    key: str | None = None,
    at: datetime = NOON,
) -> Verdict:
    """Return what it says."""
    verdict = asked.judge(
        Question(command=command, signed_by=key, at=at, params=lambda: read_params(params))
    )
    assert verdict is not None
    return verdict


def test_what_no_rule_matches_is_denied(tmp_path: Path) -> None:
    verdict = ask(policy(tmp_path, {"commands": ["other"]}))

    assert verdict.action is Action.DENY
    assert verdict.rule_name is None
    assert verdict.for_sender == "no rule of this host's policy allows it"


def test_a_policy_without_rules_denies_everything(tmp_path: Path) -> None:
    assert ask(policy(tmp_path)).action is Action.DENY


def test_the_first_rule_that_matches_decides(tmp_path: Path) -> None:
    rules = policy(
        tmp_path,
        {"commands": ["x"]},
        {"commands": ["a.*"], "action": "deny"},
        {"commands": ["a.b"]},
    )

    verdict = ask(rules)

    assert (verdict.action, verdict.rule_name) == (Action.DENY, "r1")
    assert [miss.rule for miss in verdict.missed] == ["r0"]
    assert "'r1'" in verdict.for_sender


@pytest.mark.parametrize(
    ("glob", "command", "matches"),
    [
        ("*", "anything.at all", True),
        ("reports.*", "reports.daily", True),
        ("reports.*", "reports", False),
        ("reports.*", "xreports.daily", False),
        ("reports.*", "Reports.daily", False),
        ("db.?", "db.1", True),
        ("db.?", "db.12", False),
        ("db.[ab]", "db.b", True),
        ("a", "a\n", False),
    ],
)
def test_globs_match_whole_names(tmp_path: Path, glob: str, command: str, matches: bool) -> None:
    allowed = ask(policy(tmp_path, {"commands": [glob]}), command).action is Action.ALLOW

    assert allowed == matches


@pytest.mark.parametrize(
    ("key", "allowed"), [(None, False), ("mallory", False), ("ops-7", True), ("alice", True)]
)
def test_a_rule_with_keys_needs_a_signature_of_one(
    tmp_path: Path, key: str | None, allowed: bool
) -> None:
    rules = policy(
        tmp_path, {"keys": ["ops-*"], "senders": ["Alice"]}, senders={"Alice": ["alice"]}
    )

    assert (ask(rules, key=key).action is Action.ALLOW) == allowed


@pytest.mark.parametrize(
    ("at", "inside"),
    [
        ("2026-05-04T07:59:59+02:00", False),
        ("2026-05-04T08:00:00+02:00", True),
        ("2026-05-04T17:59:59+02:00", True),
        ("2026-05-04T18:00:00+02:00", False),
        ("2026-05-04T06:30:00Z", True),  # 08:30 in Berlin
        ("2026-05-09T12:00:00+02:00", False),  # a Saturday
        ("2026-12-01T07:30:00Z", True),  # winter: 08:30
        ("2026-12-01T06:30:00Z", False),
    ],
)
def test_hours_are_those_of_their_zone(tmp_path: Path, at: str, inside: bool) -> None:
    hours = {"days": ["mon-fri"], "from": "08:00", "to": "18:00", "zone": "Europe/Berlin"}

    verdict = ask(policy(tmp_path, {"hours": [hours]}), at=datetime.fromisoformat(at))

    assert (verdict.action is Action.ALLOW) == inside


@pytest.mark.parametrize(
    ("at", "inside"),
    [
        ("2026-05-08T21:59:00Z", False),  # Friday
        ("2026-05-08T22:00:00Z", True),
        ("2026-05-09T05:59:00Z", True),  # Friday's night, on Saturday
        ("2026-05-09T06:00:00Z", False),
        ("2026-05-09T22:00:00Z", False),  # Saturday's night
        ("2026-05-10T05:00:00Z", False),
        ("2026-05-11T05:00:00Z", False),  # Sunday's night, on Monday
    ],
)
def test_a_window_past_midnight_belongs_to_the_day_it_starts_on(
    tmp_path: Path, at: str, inside: bool
) -> None:
    hours = {"days": ["mon-fri"], "from": "22:00", "to": "06:00"}

    verdict = ask(policy(tmp_path, {"hours": [hours]}), at=datetime.fromisoformat(at))

    assert (verdict.action is Action.ALLOW) == inside


def test_times_need_no_quotes_in_yaml(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text(
        "rules: [{name: day, action: allow, hours: [{from: 08:00, to: 18:30, days: [mon]}]}]"
    )
    rules = read_policy(file)

    assert ask(rules, at=NOON.replace(hour=18, minute=29)).action is Action.ALLOW
    assert ask(rules, at=NOON.replace(hour=18, minute=30)).action is Action.DENY


def test_a_day_range_may_go_on_past_sunday(tmp_path: Path) -> None:
    rules = policy(tmp_path, {"hours": [{"days": ["sat-mon"]}]})

    assert [ask(rules, at=NOON.replace(day=4 + n)).action for n in range(7)] == [
        Action.ALLOW,  # Monday
        *[Action.DENY] * 4,
        Action.ALLOW,
        Action.ALLOW,
    ]


# Params

OBJECT = {
    "type": "object",
    "properties": {
        "service": {"type": "string", "enum": ["nginx", "redis"]},
        "count": {"type": "integer", "minimum": 1, "maximum": 10},
        "path": {"type": "string", "pattern": "^/srv/[a-z0-9/]+$", "maxLength": 20},
        "tags": {"type": "array", "items": {"type": "string"}, "maxItems": 2},
        "any": {"type": ["null", "boolean"]},
        "one": {"const": 1},
    },
    "required": ["service"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    "params",
    [
        b'{"service": "nginx"}',
        b'{"service": "redis", "count": 10, "path": "/srv/a/b1", "tags": ["x", "y"]}',
        b'{"service": "nginx", "count": 2.0, "any": null, "one": 1.0}',
    ],
)
def test_params_that_fit_are_let_through(tmp_path: Path, params: bytes) -> None:
    assert ask(policy(tmp_path, {"params": OBJECT}), params=params).action is Action.ALLOW


@pytest.mark.parametrize(
    ("params", "why"),
    [
        (b"{}", "params.service: is missing"),
        (b'{"service": "sshd"}', "params.service: is none of the allowed values"),
        (b'{"service": 1}', "params.service: is not of type string"),
        (b'{"service": "nginx", "count": 0}', "params.count: is below 1"),
        (b'{"service": "nginx", "count": 11}', "params.count: is above 10"),
        (b'{"service": "nginx", "count": 1.5}', "params.count: is not of type integer"),
        (b'{"service": "nginx", "count": true}', "params.count: is not of type integer"),
        (b'{"service": "nginx", "count": "3"}', "params.count: is not of type integer"),
        (b'{"service": "nginx", "path": "/etc/x"}', "params.path: does not match"),
        (b'{"service": "nginx", "path": "/srv/x\\n"}', "params.path: does not match"),
        (b'{"service": "nginx", "path": "/srv/aaaaaaaaaaaaaaaaaaaaaaaa"}', "has 29 characters"),
        (b'{"service": "nginx", "tags": ["a", "b", "c"]}', "params.tags: has 3 items"),
        (b'{"service": "nginx", "tags": ["a", 2]}', "params.tags[1]: is not of type string"),
        (b'{"service": "nginx", "any": 0}', "params.any: is not of type null or boolean"),
        (b'{"service": "nginx", "one": true}', "params.one: is none of the allowed values"),
        (b'{"service": "nginx", "force": 1}', "params: has a member that is not allowed"),
        (b"[]", "params: is not of type object"),
        (b"null", "params: is not of type object"),
    ],
)
def test_params_that_do_not_fit_are_no_match(tmp_path: Path, params: bytes, why: str) -> None:
    verdict = ask(policy(tmp_path, {"params": OBJECT}), params=params)

    assert verdict.action is Action.DENY
    assert why in verdict.missed[0].reason


@pytest.mark.parametrize(
    ("params", "why"),
    [
        (b'{"service": "sshd", "service": "nginx"}', "same name twice"),
        (b'{"a": {"b": 1, "b": 2}, "service": "nginx"}', "same name twice"),
        (b"\xff\xfe{}", "not UTF-8"),
        ('{"service": "nginx"}'.encode("utf-16"), "not UTF-8"),
        (b'\xef\xbb\xbf{"service": "nginx"}', "not JSON"),
        (b'{"service": "nginx"', "not JSON"),
        (b"{'service': 'nginx'}", "not JSON"),
        (b'{"count": NaN}', "not JSON"),
        (b'{"count": Infinity}', "not JSON"),
        (b'{"count": 1e999}', "too large"),
        (b'{"count": ' + b"9" * 5000 + b"}", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'"' + b"x" * 1_100_000 + b'"', "more than 1048576 bytes"),
    ],
)
@pytest.mark.parametrize("action", ["allow", "deny", "approve"])
def test_params_that_two_readers_may_read_differently_are_denied_whatever_the_rule_says(
    tmp_path: Path, params: bytes, why: str, action: str
) -> None:
    rules = policy(tmp_path, {"params": OBJECT, "action": action}, {"name": "rest"})

    verdict = ask(rules, params=params)

    assert (verdict.action, verdict.rule_name) == (Action.DENY, "r0")
    assert why in verdict.reason


def test_a_text_too_long_for_its_pattern_is_denied_by_the_rule_that_looks_at_it(
    tmp_path: Path,
) -> None:
    schema = {"type": "string", "pattern": "evil"}
    rules = policy(tmp_path, {"params": schema, "action": "deny"}, {"name": "rest"})

    assert ask(rules, params=b'"good"').rule_name == "rest"
    assert ask(rules, params=b'"' + b"x" * 5000 + b'"').rule_name == "r0"


def test_params_are_not_needed_when_no_rule_on_the_way_asks_about_them(tmp_path: Path) -> None:
    def early(*rules: dict[str, Any]) -> Verdict | None:
        return policy(tmp_path, *rules).judge(
            Question(command="a.b", signed_by=None, at=NOON, params=None)
        )

    denied = early({"commands": ["x"], "params": OBJECT}, {"action": "deny"})
    unknown = early({"params": OBJECT}, {"action": "deny"})

    assert denied is not None
    assert denied.action is Action.DENY
    assert unknown is None


# Files

REFUSED = {
    "unknown key": ([{"comands": ["x"]}], "rules[0].comands: unknown key"),
    "unknown action": ([{"action": "maybe"}], "rules[0].action"),
    "two of a name": ([{"name": "a"}, {"name": "a"}], "rules[1].name: another rule has this name"),
    "no commands": ([{"commands": []}], "rules[0].commands"),
    "unknown sender": ([{"senders": ["eve"]}], "rules[0].senders[0]: is not among"),
    "unknown zone": ([{"hours": [{"zone": "Mars/Base"}]}], "rules[0].hours[0].zone: no such"),
    "zone that is a path": ([{"hours": [{"zone": "../../etc/passwd"}]}], "hours[0].zone: no such"),
    "no time": ([{"hours": [{"from": "8 pm"}]}], "rules[0].hours[0].from: Expected a time"),
    "hour as a number": ([{"hours": [{"from": 18}]}], "rules[0].hours[0].from: Expected a time"),
    "no such time": ([{"hours": [{"to": "24:01"}]}], "rules[0].hours[0].to: Expected a time"),
    "empty window": ([{"hours": [{"from": "08:00", "to": "08:00"}]}], "hours[0].to: is the same"),
    "no such day": ([{"hours": [{"days": ["mo"]}]}], "rules[0].hours[0].days[0]: Expected mon"),
    "none at once": ([{"at_once": 0}], "rules[0].at_once"),
    "unknown keyword": ([{"params": {"anyOf": []}}], "rules[0].params.anyOf: unknown keyword"),
    "bad type": ([{"params": {"type": "text"}}], "rules[0].params.type: must be of object"),
    "typeless bound": ([{"params": {"maximum": 3}}], "params.maximum: needs type: integer or"),
    "other type's bound": (
        [{"params": {"type": "string", "maximum": 3}}],
        "params.maximum: needs type: integer or number",
    ),
    "date": ([{"params": {"const": NOON.date()}}], "params.const: not a JSON value: dates need"),
    "deep": (
        [{"params": {"type": "object", "properties": {"a": {"format": "email"}}}}],
        "rules[0].params.properties.a.format: unknown keyword",
    ),
    "endless pattern": (
        [{"params": {"type": "string", "pattern": "(a+)+$"}}],
        "rules[0].params.pattern: a repeated group",
    ),
}


@pytest.mark.parametrize(("rules", "message"), REFUSED.values(), ids=REFUSED)
def test_a_bad_file_is_refused_with_the_path_of_the_key(
    tmp_path: Path, rules: list[dict[str, Any]], message: str
) -> None:
    with pytest.raises(SettingsError) as refused:
        policy(tmp_path, *rules)

    assert message in str(refused.value)
    assert "policy.yaml" in str(refused.value)


def test_a_file_without_rules_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text("")

    with pytest.raises(SettingsError, match="rules: is required"):
        read_policy(file)


def test_a_file_that_everybody_may_write_to_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "policy.yaml"
    file.write_text("rules: []")
    file.chmod(0o666)

    with pytest.raises(SettingsError, match="every user may write"):
        read_policy(file)


def test_a_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read"):
        read_policy(tmp_path / "nowhere.yaml")
