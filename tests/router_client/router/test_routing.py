"""The rules: how they choose a provider, and the errors of an invalid rules file."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as some

from router_client.router.rules import (
    RULES_FILE,
    RouterRequest,
    Rule,
    RulesError,
    choose,
    load_rules,
)

PROVIDERS = ("vision_encoder", "vision_rag")
EXAMPLES = 50  # per property; 100 would double the time of this file


def rules_of(tmp_path: Path, text: str) -> list[Rule]:
    file = tmp_path / "rules.yml"
    file.write_text(text, "utf-8")
    return load_rules(file, PROVIDERS)


def request(**fields: Any) -> RouterRequest:
    return RouterRequest(**{"mode": "a", **fields})


def test_the_default_rules_send_each_mode_to_its_provider() -> None:
    rules = load_rules(RULES_FILE, PROVIDERS)
    chosen = {(r.priority, r.use_provider, *r.when["mode"]) for r in rules}
    assert chosen == {
        (2, "vision_rag", "image_search"),
        (3, "vision_encoder", "vision_embed"),
    }
    assert all(rule.description for rule in rules)
    for mode, provider in (("image_search", "vision_rag"), ("vision_embed", "vision_encoder")):
        rule = choose(rules, request(mode=mode, agent="any", payload={"top_k": 3}))
        assert rule is not None
        assert rule.use_provider == provider
    assert choose(rules, request(mode="chat")) is None


def test_every_field_of_a_rule_must_have_one_of_its_values(tmp_path: Path) -> None:
    (rule,) = rules_of(
        tmp_path,
        """
rules:
  - id: helios
    priority: 1
    when: {mode: [a, b], agent: helios, payload.operation: embed_text, payload.top_k: [3, true]}
    use_provider: vision_rag
""",
    )
    good: dict[str, Any] = {"agent": "helios", "payload": {"operation": "embed_text", "top_k": 3}}
    assert rule.matches(request(**good))
    assert rule.matches(request(**{**good, "mode": "b"}))
    assert not rule.matches(request(**{**good, "mode": "c"}))
    assert not rule.matches(request(**{**good, "agent": None}))
    assert not rule.matches(request(**{**good, "payload": {"operation": "embed_text"}}))
    payload = {"operation": "embed_text", "top_k": 1}  # 1 is not true
    assert not rule.matches(request(**{**good, "payload": payload}))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rules: [", r"rules\.yml: while parsing"),
        ("- id: a", r"rules\.yml: the file must have a list named rules"),
        ("rules: {}", r"rules\.yml: the file must have a list named rules"),
        ("rules: []\nrule: []", r"rules\.yml: unknown key 'rule'; the only key is rules"),
        ("rules: [{id: 2024-99-99}]", r"rules\.yml: month must be in"),
        ("rules: " + "[" * 1000, r"rules\.yml: "),
        ("rules: []\nrules: []", r"rules\.yml: the key 'rules' occurs twice"),
        (
            "rules: [{id: x, priority: 1, when: {dao_id: a}, when: {mode: b}, use_provider: y}]",
            r"rules\.yml: the key 'when' occurs twice",
        ),
        ("rules: [nothing]", r"rule no\. 1: Input should be a valid dictionary"),
        ("rules: [{priority: 1, when: {}, use_provider: vision_rag}]", r"rule no\. 1: id: "),
        ("rules: [{id: x, when: {}, use_provider: vision_rag}]", r"rule 'x': priority: "),
        ("rules: [{id: x, priority: high, when: {}, use_provider: vision_rag}]", r"'x': priority:"),
        ("rules: [{id: x, priority: -1, when: {}, use_provider: vision_rag}]", r"'x': priority:"),
        ("rules: [{id: x, priority: 1, use_provider: vision_rag}]", r"rule 'x': when: "),
        ("rules: [{id: x, priority: 1, when: a, use_provider: vision_rag}]", r"rule 'x': when: "),
        (
            "rules: [{id: x, priority: 1, when: {mod: a}, use_provider: vision_rag}]",
            r"'x': when: 'mod' is not a field; use agent, .*mode.*payload\.NAME",
        ),
        (
            "rules: [{id: x, priority: 1, when: {mode: on}, use_provider: vision_rag}]",
            r"'x': when: mode: True is not a string; put it in quotes",
        ),
        (
            "rules: [{id: x, priority: 1, when: {mode: []}, use_provider: vision_rag}]",
            r"'x': when: mode has no values",
        ),
        (
            "rules: [{id: x, priority: 1, when: {payload.: a}, use_provider: vision_rag}]",
            r"'x': when: 'payload\.' is not a field",
        ),
        (
            "rules: [{id: x, priority: 1, when: {}, use_provider: llm}]",
            r"'x': use_provider: 'llm' is not a provider; use vision_encoder or vision_rag",
        ),
        ("rules: [{id: x, priority: 1, when: {}, use_provider: 3}]", r"rule 'x': use_provider: "),
        (
            "rules: [{id: x, priority: 1, when: {}, use_provider: vision_rag, prio: 2}]",
            r"rule 'x': prio: ",
        ),
        (
            "rules: [{id: x, priority: 1, when: {}, use_provider: vision_rag}, "
            "{id: x, priority: 2, when: {}, use_provider: vision_rag}]",
            r"rule 'x': id: an earlier rule has the same id",
        ),
    ],
)
def test_an_invalid_rule_is_reported_with_file_rule_and_field(
    tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(RulesError, match=message):
        rules_of(tmp_path, text)


def test_an_unreadable_rules_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(RulesError, match=r"nowhere\.yml"):
        load_rules(tmp_path / "nowhere.yml", PROVIDERS)
    (tmp_path / "latin.yml").write_bytes(b"rules: []  # \xe9")
    with pytest.raises(RulesError, match=r"latin\.yml"):
        load_rules(tmp_path / "latin.yml", PROVIDERS)


# Properties

TEXT_FIELDS = ("mode", "agent", "dao_id", "source", "session_id", "user_id")
values = some.sampled_from(["a", "b", "c"])
scalars = some.one_of(values, some.integers(0, 2), some.booleans())
whens = some.dictionaries(
    some.sampled_from(TEXT_FIELDS), some.lists(values, min_size=1, max_size=2), max_size=2
).flatmap(
    lambda fields: some.dictionaries(
        some.sampled_from(["payload.x", "payload.y"]),
        some.lists(scalars, min_size=1, max_size=2),
        max_size=2,
    ).map(lambda payload: {**fields, **payload})
)
requests = some.builds(
    RouterRequest,
    mode=values,
    agent=some.none() | values,
    dao_id=some.none() | values,
    source=some.none() | values,
    session_id=some.none() | values,
    user_id=some.none() | values,
    payload=some.dictionaries(some.sampled_from(["x", "y"]), scalars),
)


@some.composite
def rule_lists(draw: some.DrawFn) -> list[Rule]:
    bodies = draw(some.lists(some.tuples(some.integers(0, 4), whens), max_size=6))
    return [
        Rule.model_validate(
            {"id": f"r{i}", "priority": priority, "when": when, "use_provider": "vision_rag"}
        )
        for i, (priority, when) in enumerate(bodies)
    ]


def expected(rules: list[Rule], asked: RouterRequest) -> Rule | None:
    """Choose a rule with an independent implementation."""
    best = None
    for rule in rules:
        for name, wanted in rule.when.items():
            if name.startswith("payload."):
                value = asked.payload.get(name.split(".", 1)[1])
            else:
                value = asked.model_dump()[name]
            # 1 and true are equal in Python, but not in YAML or JSON
            if not any(repr(value) == repr(one) for one in wanted):
                break
        else:
            if best is None or rule.priority < best.priority:
                best = rule
    return best


@settings(max_examples=EXAMPLES)
@given(rule_lists(), requests)
def test_the_matching_rule_with_the_lowest_priority_is_chosen(
    rules: list[Rule], asked: RouterRequest
) -> None:
    assert choose(rules, asked) is expected(rules, asked)


@settings(max_examples=EXAMPLES)
@given(rule_lists(), requests, some.randoms())
def test_the_order_in_the_file_matters_only_among_equal_priorities(
    rules: list[Rule], asked: RouterRequest, random: Any
) -> None:
    distinct = list({rule.priority: rule for rule in rules}.values())
    shuffled = random.sample(distinct, len(distinct))
    assert choose(distinct, asked) is choose(shuffled, asked)


@settings(max_examples=EXAMPLES)
@given(rule_lists(), requests)
def test_a_later_catch_all_rule_does_not_change_other_choices(
    rules: list[Rule], asked: RouterRequest
) -> None:
    chosen = choose(rules, asked)
    catch_all = Rule(id="rest", priority=9, when={}, use_provider="vision_rag")
    assert choose([*rules, catch_all], asked) is (chosen or catch_all)


@settings(max_examples=EXAMPLES)
@given(rule_lists())
def test_rules_can_be_written_and_read_again(rules: list[Rule]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rules.yml"
        file.write_text(yaml.safe_dump({"rules": [rule.model_dump() for rule in rules]}), "utf-8")
        assert load_rules(file, PROVIDERS) == rules
