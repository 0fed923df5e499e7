"""The requests and responses of a router, and the rules that choose a provider.

Rules come from a YAML file. `router-config.yml`, beside this module, is the default.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    field_validator,
)

from bento.contract.errors import describe

RULES_FILE: Final = Path(__file__).parent / "router-config.yml"

Scalar = str | int | float | bool


class RouterRequest(BaseModel):
    """A request to an agent router. Unknown fields are ignored."""

    model_config = ConfigDict(extra="ignore", str_strip_whitespace=True)

    mode: Annotated[str, Field(min_length=1)]
    agent: str | None = None
    # Not stripped: to the service, ids that differ by spaces are different tenants.
    dao_id: Annotated[str, StringConstraints(strip_whitespace=False, min_length=1)] | None = None
    source: str | None = None
    session_id: str | None = None
    user_id: str | None = None
    message: str | None = None
    payload: Annotated[dict[str, Any], BeforeValidator(lambda given: given or {})] = {}


class RouterResponse(BaseModel):
    """The response of a router. If `ok` is false, `error` has a message; `data` may be None."""

    ok: bool
    provider_id: str | None = None
    data: dict[str, Any] | None = None
    error: str | None = None
    metadata: dict[str, Any] = {}


class RulesError(Exception):
    """The rules file is invalid. The message names the file, the rule and the field."""


_TEXT_FIELDS: Final = frozenset({"mode", "agent", "dao_id", "source", "session_id", "user_id"})


class Rule(BaseModel):
    """A rule sends the requests that meet all conditions of `when` to the provider `use_provider`.

    A condition maps a field of the request, or `payload.NAME`, to a value or to a list of allowed
    values. An empty `when` matches every request.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    id: str = Field(min_length=1)
    priority: int = Field(ge=0, description="If several rules match, the lowest number wins.")
    when: dict[str, list[Scalar]]
    use_provider: str
    description: str = ""

    @field_validator("when", mode="before")
    @classmethod
    def _listed(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        return {k: v if isinstance(v, list) else [v] for k, v in given.items()}

    @field_validator("when")
    @classmethod
    def _checked(cls, when: dict[str, list[Scalar]]) -> dict[str, list[Scalar]]:
        for name, values in when.items():
            if name not in _TEXT_FIELDS and not re.match(r"payload\..", name):
                allowed = ", ".join(sorted(_TEXT_FIELDS))
                raise ValueError(f"{name!r} is not a field; use {allowed} or payload.NAME")
            if not values:
                raise ValueError(f"{name} has no values; give at least one")
            for value in values:
                if name in _TEXT_FIELDS and not isinstance(value, str):
                    raise ValueError(f"{name}: {value!r} is not a string; put it in quotes")
        return when

    def matches(self, request: RouterRequest) -> bool:
        return all(
            any(_same(_value(request, name), value) for value in values)
            for name, values in self.when.items()
        )


def choose(rules: Sequence[Rule], request: RouterRequest) -> Rule | None:
    """Return the matching rule with the lowest priority number; among equals, the first."""
    matching = [rule for rule in rules if rule.matches(request)]
    return min(matching, key=lambda rule: rule.priority, default=None)


def load_rules(file: Path, providers: Collection[str]) -> list[Rule]:
    """Read the rules from a file. Raises `RulesError` if it is invalid.

    `providers` has the ids that a rule may name in `use_provider`.
    """
    try:
        content = yaml.load(file.read_text("utf-8"), _Loader)  # noqa: S506  a SafeLoader
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise RulesError(f"{file}: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict) or not isinstance(content.get("rules"), list):
        raise RulesError(f"{file}: the file must have a list named rules")
    if unknown := content.keys() - {"rules"}:
        raise RulesError(
            f"{file}: unknown key {', '.join(map(repr, unknown))}; the only key is rules"
        )
    rules: list[Rule] = []
    for number, entry in enumerate(content["rules"], 1):
        where = f"{file}: rule {_name(entry, number)}"
        try:
            rule = Rule.model_validate(entry)
        except ValidationError as error:
            raise RulesError(f"{where}: {describe(error)}") from None
        if rule.use_provider not in providers:
            raise RulesError(
                f"{where}: use_provider: {rule.use_provider!r} is not a provider; "
                f"use {' or '.join(sorted(providers))}"
            )
        if rule.id in {other.id for other in rules}:
            raise RulesError(f"{where}: id: an earlier rule has the same id; ids must be unique")
        rules.append(rule)
    return rules


class _Loader(yaml.SafeLoader):
    """A safe loader that rejects duplicate keys, of which PyYAML would keep only the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1 and key != "<<":
                problem = f"the key {key!r} occurs twice"
                raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        return super().construct_mapping(node, deep)


def _value(request: RouterRequest, name: str) -> Any:
    if name in _TEXT_FIELDS:
        return getattr(request, name)
    return request.payload.get(name.removeprefix("payload."))


def _same(value: Any, wanted: Scalar) -> bool:
    return isinstance(value, bool) == isinstance(wanted, bool) and bool(value == wanted)


def _name(entry: Any, number: int) -> str:
    named = entry.get("id") if isinstance(entry, dict) else None
    return repr(named) if isinstance(named, str) and named else f"no. {number}"
