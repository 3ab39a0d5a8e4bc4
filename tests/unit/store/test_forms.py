"""The one-tenant forms: each is about one tenant, and made from the same text as the other."""

from __future__ import annotations

import importlib
import pkgutil
import re
from types import SimpleNamespace
from uuid import UUID

import pytest

import dispatcher.store
from dispatcher.store import forms, publish
from dispatcher.store.forms import TenantStatement, by_tenant
from dispatcher.store.group_commit import by_tenant as parts_by_tenant

MODULES = [
    importlib.import_module(f"dispatcher.store.{module.name}")
    for module in pkgutil.iter_modules(dispatcher.store.__path__)
]
STATEMENTS = {
    f"{module.__name__.rpartition('.')[2]}.{name}": value
    for module in MODULES
    for name, value in vars(module).items()
    if isinstance(value, TenantStatement)
}
DISTRIBUTED = (
    r"(?:endpoint|cursor|outbox|attempt|decision|dead_letter|dead_letter_payload|event|parked|halt|endpoint_health)"
)


def test_all_hot_statements_about_many_tenants_have_one() -> None:
    assert set(STATEMENTS) >= {
        "attempts.APPEND_AGAIN", "backlog.FETCH_FACTS", "backlog.FETCH_PAYLOADS", "backlog.FETCH_ROWS",
        "backlog.LOAD_POSITIONS", "cursors.ADVANCE", "decisions.INSERT_DEAD_LETTERS", "decisions.INSERT_DECISIONS",
        "halts.INSERT_HALTS", "health.UPSERT", "operational.INSERT_EVENTS", "parked.INSERT_PARKED",
        "runtime.LOAD_RUNTIME",
    }  # fmt: skip


@pytest.mark.parametrize("name", sorted(STATEMENTS))
def test_each_one_tenant_form_names_its_tenant(name: str) -> None:
    one = STATEMENTS[name].one
    assert "$1::uuid[]" not in one
    assert re.search(r"tenant_id = \$1::uuid|SELECT (?:DISTINCT )?\$1::uuid\b", one)
    # Whatever table it reads is bound to that tenant, by itself or through another table that is.
    aliases = set(re.findall(rf"(?:FROM|JOIN|UPDATE)\s+{DISTRIBUTED}\s+(\w+)\b", one)) - {"SET", "ON", "USING", "WHERE"}
    bound = {a for a in aliases if re.search(rf"\b{a}\.tenant_id = \$1::uuid", one)}
    for _ in aliases:
        bound |= {a for a in aliases for b in bound if re.search(rf"\b{a}\.tenant_id = {b}\.tenant_id\b", one)}
    assert aliases <= bound


def test_publish_one_names_its_tenant_in_every_statement() -> None:
    source = (importlib.resources.files("dispatcher.store") / "migrations" / "0005_one_tenant.sql").read_text()
    tables = re.findall(r"(?:FROM|JOIN) (?:dedup|endpoint|outbox|cursor|tenant) (\w+)\b", source)
    assert len(tables) >= 6
    for alias in set(tables):
        assert source.count(f"{alias}.tenant_id = p_tenant_id") >= tables.count(alias)
    assert len(re.findall(r"INSERT INTO \w+ \(tenant_id,", source)) == source.count("SELECT p_tenant_id, ") == 3
    assert "publish_one(" in publish.PUBLISH_ONE


@pytest.mark.parametrize(
    "text",
    [
        "SELECT 1",
        "SELECT FROM unnest($1::uuid[], $2::uuid[]) k(tenant_id, endpoint_id)",
        "SELECT FROM unnest($1::uuid[], $2::x[]) k(tenant_id, e), unnest($1::uuid[], $3::x[]) l(tenant_id, f)",
    ],
)
def test_a_text_that_has_no_one_tenant_form_is_refused_at_import(text: str) -> None:
    with pytest.raises(ValueError, match="tenant"):
        by_tenant(text)


def test_rows_are_grouped_by_tenant_in_lock_order() -> None:
    low, high = UUID(int=1), UUID(int=2)
    assert list(forms._tenants([(high, 1), (low, 2), (high, 3)])) == [(low, [(2,)]), (high, [(1,), (3,)])]


def item(tenant: int, chain: int, name: str) -> SimpleNamespace:
    return SimpleNamespace(request=SimpleNamespace(tenant_id=UUID(int=tenant), chain=chain), name=name)


def test_a_batch_is_parted_by_tenant_and_no_stream_overtakes_itself() -> None:
    batch = [item(1, 7, "a"), item(2, 7, "b"), item(1, 7, "c"), item(1, 0, "d"), item(2, 8, "e"), item(2, 0, "f")]
    parts = [[each.name for each in part] for part in parts_by_tenant(batch)]  # type: ignore[arg-type]
    assert parts == [["a", "d"], ["b", "e", "f"], ["c"]]
