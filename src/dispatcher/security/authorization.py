"""Who may do what: a policy file maps callers to roles over tenants and event types; pure. Default deny.

    bindings:
      - principals: ["spiffe://mesh.example/ns/shop/sa/*"]
        roles: [publisher]
        tenants: [acme]
        event_types: ["order.*"]
      - claims: {groups: [webhook-admins]}
        roles: [manager, reader, operator]
        tenants: ["*"]

A binding holds for a caller whose principal matches one of `principals` and whose JWT has, of each of `claims`, one of
the values; at least one of the two is there. `*` stands for any characters but `/`; alone it is everybody who has
authenticated.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from dispatcher.security.callers import Caller
from dispatcher.security.yaml_files import YamlError, explain, load_yaml

BYTES_MAX = 1024 * 1024
BINDINGS_MAX = 10_000
EVERYTHING = "*"


class Permission(enum.StrEnum):
    """What a call needs; the words that PERMISSION_DENIED names."""

    PUBLISH = "events.publish"
    MANAGE = "endpoints.manage"
    READ = "deliveries.read"
    OPERATE = "service.operate"


class Role(enum.StrEnum):
    """What a binding gives."""

    PUBLISHER = "publisher"
    MANAGER = "manager"
    READER = "reader"
    OPERATOR = "operator"


PERMISSIONS: Mapping[Role, Permission] = {
    Role.PUBLISHER: Permission.PUBLISH,
    Role.MANAGER: Permission.MANAGE,
    Role.READER: Permission.READ,
    Role.OPERATOR: Permission.OPERATE,
}


class PolicyError(ValueError):
    """A policy file is unusable; the message names each place, at most ten."""


_Principal = Annotated[str, StringConstraints(pattern=r"^[\x21-\x7e]{1,512}$")]
_TenantGlob = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9*][A-Za-z0-9_*-]{0,63}$")]
_TypePattern = Annotated[
    str, StringConstraints(pattern=r"^(\*|[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*(\.\*)?)$", max_length=128)
]
_Few = Field(min_length=1, max_length=1000)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class _Binding(_Strict):
    name: str = Field(default="", max_length=256)
    principals: Annotated[list[_Principal], _Few] | None = None
    claims: Annotated[dict[str, Annotated[list[str], _Few]], _Few] | None = None
    roles: Annotated[list[Literal["publisher", "manager", "reader", "operator"]], _Few]
    tenants: Annotated[list[_TenantGlob], _Few]
    event_types: Annotated[list[_TypePattern], _Few] = [EVERYTHING]

    @model_validator(mode="after")
    def _makes_sense(self) -> _Binding:
        if self.principals is None and self.claims is None:
            raise ValueError("must have principals or claims: what is for everybody says principals: ['*']")
        if self.event_types != [EVERYTHING] and self.roles != ["publisher"]:
            raise ValueError("event_types limit publishers only: a binding with them has the role publisher alone")
        for principal in self.principals or ():
            scheme, is_uri, rest = principal.partition("://")
            if is_uri and "*" in scheme + rest.partition("/")[0]:
                raise ValueError("a principal's scheme and trust domain hold no *")
        return self


class _File(_Strict):
    bindings: Annotated[list[_Binding], Field(max_length=BINDINGS_MAX)]


@dataclass(frozen=True, slots=True)
class Scope:
    """What one binding opens: tenants, and event types for publishing."""

    is_whole: bool
    tenants: re.Pattern[str]
    event_types: frozenset[str]

    def has(self, tenant: str | None) -> bool:
        """Whether a tenant is in it; None asks for all of them."""
        return self.is_whole or (tenant is not None and self.tenants.fullmatch(tenant) is not None)

    def covers(self, event_type: str) -> bool:
        """Whether `event_type` may be published."""
        return EVERYTHING in self.event_types or any(form in self.event_types for form in _forms(event_type))


@dataclass(frozen=True, slots=True)
class _Rule:
    principals: re.Pattern[str] | None
    claims: Mapping[str, frozenset[str]]
    permissions: frozenset[Permission]
    scope: Scope

    def holds_for(self, caller: Caller) -> bool:
        if self.principals is not None and not self.principals.fullmatch(caller.principal):
            return False
        has = dict(caller.claims)
        return all(wanted.intersection(has.get(name, ())) for name, wanted in self.claims.items())


class AccessPolicy:
    """A parsed policy. Immutable: a changed file makes a new one."""

    def __init__(self, rules: Iterable[_Rule]) -> None:
        self._rules = tuple(rules)
        self.scopes = lru_cache(maxsize=1024)(self._scopes)
        """Where a caller has a permission; empty for nowhere."""

    @classmethod
    def parse(cls, text: str) -> AccessPolicy:
        """From the YAML of a policy file. Raises PolicyError."""
        try:
            file = _File.model_validate(load_yaml(text, BYTES_MAX))
        except ValidationError as error:
            raise PolicyError(explain(error)) from None
        except YamlError as error:
            raise PolicyError(str(error)) from None
        return cls(_rule(binding) for binding in file.bindings)

    def __len__(self) -> int:
        """The number of bindings."""
        return len(self._rules)

    def allows(
        self, caller: Caller, permission: Permission, tenant: str | None, event_types: Collection[str] = ()
    ) -> bool:
        """Whether `caller` has `permission` for `tenant`, and for each of `event_types` in it. A call about no one
        tenant (None) needs a binding for all."""
        scopes = [scope for scope in self.scopes(caller, permission) if scope.has(tenant)]
        return bool(scopes) and all(any(scope.covers(each) for scope in scopes) for each in event_types)

    def _scopes(self, caller: Caller, permission: Permission) -> tuple[Scope, ...]:
        return tuple(rule.scope for rule in self._rules if permission in rule.permissions and rule.holds_for(caller))


def _rule(binding: _Binding) -> _Rule:
    claims = binding.claims or {}
    return _Rule(
        principals=None if binding.principals is None else _globs(binding.principals, "[^/]*"),
        claims={name: frozenset(values) for name, values in claims.items()},
        permissions=frozenset(PERMISSIONS[Role(role)] for role in binding.roles),
        scope=Scope(EVERYTHING in binding.tenants, _globs(binding.tenants, "[^/]*"), frozenset(binding.event_types)),
    )


def _globs(texts: Sequence[str], star: str) -> re.Pattern[str]:
    """One expression for all; the text `*` alone is anything."""
    return re.compile(
        "|".join(".*" if text == EVERYTHING else star.join(map(re.escape, text.split("*"))) for text in texts)
    )


def _forms(event_type: str) -> Iterator[str]:
    """The patterns that an event type fits, `*` aside: itself, and `prefix.*` for each of its prefixes."""
    yield event_type
    segments = event_type.split(".")
    for length in range(1, len(segments)):
        yield ".".join([*segments[:length], "*"])
