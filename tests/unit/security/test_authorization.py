"""Who may do what: default deny, and no way around the words of the policy."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.security.authorization import AccessPolicy, Permission, PolicyError
from dispatcher.security.callers import AuthMode, Caller

SHOP = Caller("spiffe://mesh.example/ns/shop/sa/web", AuthMode.XFCC)


def policy(*bindings: str) -> AccessPolicy:
    return AccessPolicy.parse("bindings:\n" + "".join(f"  - {binding}\n" for binding in bindings))


def test_without_a_binding_nobody_may_anything() -> None:
    assert not any(policy_.allows(SHOP, each, "acme") for policy_ in [AccessPolicy(())] for each in Permission)
    assert not AccessPolicy.parse("bindings: []").allows(SHOP, Permission.PUBLISH, "acme")


@pytest.mark.parametrize(
    ("role", "permission"),
    [
        ("publisher", Permission.PUBLISH),
        ("manager", Permission.MANAGE),
        ("reader", Permission.READ),
        ("operator", Permission.OPERATE),
    ],
)
def test_a_role_gives_its_permission_and_no_other(role: str, permission: Permission) -> None:
    found = policy(f"{{principals: ['{SHOP.principal}'], roles: [{role}], tenants: [acme]}}")
    assert [each for each in Permission if found.allows(SHOP, each, "acme")] == [permission]


@pytest.mark.parametrize(
    ("pattern", "principal", "matches"),
    [
        ("spiffe://mesh.example/ns/shop/sa/*", "spiffe://mesh.example/ns/shop/sa/web", True),
        ("spiffe://mesh.example/ns/shop/sa/*", "spiffe://mesh.example/ns/shop/sa/web/admin", False),
        ("spiffe://mesh.example/ns/shop/sa/*", "spiffe://mesh.example/ns/shop/sa", False),
        ("spiffe://mesh.example/ns/*/sa/web", "spiffe://mesh.example/ns/a/sa/x/sa/web", False),
        ("spiffe://mesh.example/ns/shop", "spiffe://mesh.example/ns/shopping", False),
        ("spiffe://mesh.example/ns/shop", "spiffe://mesh-example/ns/shop", False),
        ("*", "anything/at:all", True),
        ("ci-*", "ci-7", True),
        ("ci-*", "xci-7", False),
        ("a.b", "axb", False),
    ],
)
def test_a_star_stands_within_one_segment(pattern: str, principal: str, matches: bool) -> None:
    found = policy(f"{{principals: ['{pattern}'], roles: [reader], tenants: ['*']}}")
    assert found.allows(Caller(principal, AuthMode.XFCC), Permission.READ, "acme") is matches


def test_tenants_are_named_or_all() -> None:
    found = policy(f"{{principals: ['{SHOP.principal}'], roles: [operator], tenants: [acme, 'eu-*']}}")
    allowed = {
        tenant: found.allows(SHOP, Permission.OPERATE, tenant) for tenant in ("acme", "eu-1", "eu", "acme2", "-")
    }
    assert allowed == {"acme": True, "eu-1": True, "eu": False, "acme2": False, "-": False}
    assert not found.allows(SHOP, Permission.OPERATE, None), "a call about the deployment needs all tenants"
    everything = policy(f"{{principals: ['{SHOP.principal}'], roles: [operator], tenants: ['*']}}")
    assert everything.allows(SHOP, Permission.OPERATE, None)


def test_a_pattern_that_happens_to_match_every_name_is_not_all_tenants() -> None:
    found = policy(f"{{principals: ['{SHOP.principal}'], roles: [operator], tenants: ['**']}}")
    assert found.allows(SHOP, Permission.OPERATE, "acme")
    assert not found.allows(SHOP, Permission.OPERATE, None)


def test_event_types_limit_what_is_published() -> None:
    found = policy(
        f"{{principals: ['{SHOP.principal}'], roles: [publisher], tenants: [acme], event_types: ['order.*', ping]}}"
    )
    types = ("order.paid", "order.item.added", "order", "orders.paid", "ping", "ping.x", "payment.made", "*", "order.*")
    allowed = [each for each in types if found.allows(SHOP, Permission.PUBLISH, "acme", [each])]
    assert allowed == ["order.paid", "order.item.added", "ping", "order.*"]
    assert not found.allows(SHOP, Permission.PUBLISH, "acme", ["order.paid", "payment.made"])
    assert not found.allows(SHOP, Permission.PUBLISH, "other", ["order.paid"])


def test_types_and_tenants_of_two_bindings_do_not_mix() -> None:
    found = policy(
        f"{{principals: ['{SHOP.principal}'], roles: [publisher], tenants: [acme], event_types: [a]}}",
        f"{{principals: ['{SHOP.principal}'], roles: [publisher], tenants: [other], event_types: [b]}}",
    )
    assert found.allows(SHOP, Permission.PUBLISH, "acme", ["a"])
    assert not found.allows(SHOP, Permission.PUBLISH, "acme", ["b"])


def test_claims_must_all_hold_beside_the_principal() -> None:
    found = policy("{principals: ['u*'], claims: {groups: [ops, dev], org: [x]}, roles: [reader], tenants: ['*']}")

    def may(principal: str, **claims: tuple[str, ...]) -> bool:
        caller = Caller(principal, AuthMode.JWT, tuple(sorted(claims.items())))
        return found.allows(caller, Permission.READ, "acme")

    assert may("u1", groups=("dev",), org=("x",))
    assert not may("u1", groups=("dev",))
    assert not may("u1", groups=("sales",), org=("x",))
    assert not may("v1", groups=("dev",), org=("x",))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("not a mapping", "[]"),
        ("no bindings", "{}"),
        ("an unknown key", "bindings: []\nbinding: []"),
        ("an unknown role", "bindings: [{principals: [a], roles: [root], tenants: [a]}]"),
        ("no roles", "bindings: [{principals: [a], roles: [], tenants: [a]}]"),
        ("no tenants", "bindings: [{principals: [a], roles: [reader]}]"),
        ("nobody", "bindings: [{roles: [reader], tenants: [a]}]"),
        ("an empty list of principals", "bindings: [{principals: [], roles: [reader], tenants: [a]}]"),
        ("a number for a principal", "bindings: [{principals: [7], roles: [reader], tenants: [a]}]"),
        ("a principal with a space", "bindings: [{principals: ['a b'], roles: [reader], tenants: [a]}]"),
        ("a star in the trust domain", "bindings: [{principals: ['spiffe://*/a'], roles: [reader], tenants: [a]}]"),
        ("a star in the scheme", "bindings: [{principals: ['*://a/a'], roles: [reader], tenants: [a]}]"),
        ("types for a manager", "bindings: [{principals: [a], roles: [manager], tenants: [a], event_types: [b]}]"),
        (
            "types for a publisher who reads",
            "bindings: [{principals: [a], roles: [publisher, reader], tenants: [a], event_types: [b]}]",
        ),
        (
            "a star inside a type",
            "bindings: [{principals: [a], roles: [publisher], tenants: [a], event_types: ['a*']}]",
        ),
        ("a key that stands twice", "bindings: []\nbindings: []"),
        ("an alias", "bindings: &a []\nx: *a"),
        ("a tag", "bindings: !!python/object/apply:os.system ['true']"),
        ("no YAML", "bindings: ["),
        ("deep nesting", "[" * 10_000),
        ("too large", "#" + "x" * 2_000_000),
        ("nothing", ""),
    ],
)
def test_a_policy_that_can_be_misread_is_refused(name: str, text: str) -> None:
    with pytest.raises(PolicyError):
        AccessPolicy.parse(text)


@given(st.text(max_size=300))
def test_any_text_is_a_policy_or_is_refused(text: str) -> None:
    try:
        AccessPolicy.parse(text)
    except PolicyError as error:
        assert len(str(error)) < 20_000  # noqa: PT017 - that nothing else is raised is the point
