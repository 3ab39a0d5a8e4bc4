"""Whom a certificate or the mesh's header names; anything doubtful is nobody."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.errors import UnauthenticatedError
from dispatcher.security.callers import (
    address_of_peer,
    checked_uri,
    principal_of_certificate,
    principal_of_forwarded_certificate,
    principal_of_linkerd,
)
from tests.support.certificates import Authority

SHOP = "spiffe://mesh.example/ns/shop/sa/web"


def test_the_only_uri_of_the_last_element_names_the_caller() -> None:
    header = (
        f'Hash=ab;Subject="CN=evil,O=\\";URI=x";URI=spiffe://mesh.example/ns/evil,Hash=cd;URI={SHOP};DNS=a,b'.replace(
            ",b", ""
        )
    )
    assert principal_of_forwarded_certificate(header) == SHOP


@pytest.mark.parametrize(
    ("name", "header"),
    [
        ("no URI", 'Hash=ab;Subject="CN=x"'),
        ("two URIs", f"URI={SHOP};URI=spiffe://mesh.example/ns/evil"),
        ("two URIs, other case", f"uri={SHOP};URI=spiffe://mesh.example/ns/evil"),
        ("the URI is in an earlier element", f"URI={SHOP},Hash=cd"),
        ("the last element is empty", f"URI={SHOP},"),
        ("an empty URI", "URI="),
        ("an empty header", ""),
        ("a quote stays open", f'Subject="CN=x;URI={SHOP}'),
        ("a quote within a value", f'URI={SHOP}"'),
        ("no equals sign", f"URI={SHOP};garbage"),
        ("a URI with spaces", "URI=spiffe://mesh.example/a b"),
        ("a URI with a control character", "URI=spiffe://mesh.example/a\x00"),
        ("a trust domain in capitals", "URI=spiffe://MESH.example/ns/shop"),
        ("dots that climb", "URI=spiffe://mesh.example/ns/../admin"),
        ("percent-encoding", "URI=spiffe://mesh.example/ns/%61dmin"),
        ("no path", "URI=spiffe://mesh.example"),
        ("too long", "URI=spiffe://mesh.example/" + "a" * 20_000),
    ],
)
def test_a_doubtful_forwarded_certificate_names_nobody(name: str, header: str) -> None:
    with pytest.raises(UnauthenticatedError):
        principal_of_forwarded_certificate(header)


def test_what_looks_like_a_uri_inside_a_quoted_subject_is_none() -> None:
    with pytest.raises(UnauthenticatedError):
        principal_of_forwarded_certificate(f'Subject="CN=a;URI={SHOP}"')
    with pytest.raises(UnauthenticatedError):
        principal_of_forwarded_certificate(f'Subject="CN=a,URI={SHOP}"')
    with pytest.raises(UnauthenticatedError):
        principal_of_forwarded_certificate(f'Subject="CN=a\\",URI={SHOP}"')


@given(st.text(max_size=200))
def test_any_forwarded_certificate_is_read_or_refused(header: str) -> None:
    try:
        found = principal_of_forwarded_certificate(header)
    except UnauthenticatedError:
        return
    assert found in header.replace("\\", "") or found in header
    assert found.isascii()


@given(st.text(alphabet='URIuri=;,"\\ sp:/x', max_size=60), st.text(alphabet='URIuri=;,"\\ sp:/x', max_size=60))
def test_no_beginning_makes_another_uri_of_the_last_element(forged: str, tail: str) -> None:
    """An outer proxy appends `,Hash=…;URI=…`: what a client wrote before it can only make the header unreadable."""
    try:
        found = principal_of_forwarded_certificate(f"{forged},Hash=ab;URI={SHOP}")
    except UnauthenticatedError:
        return
    assert found == SHOP


@pytest.mark.parametrize("name", ["shop.acme.serviceaccount.identity.linkerd.cluster.local", "a"])
def test_linkerds_name_is_the_callers(name: str) -> None:
    assert principal_of_linkerd(name) == name


@pytest.mark.parametrize("name", ["", "a b", "a,b", "A.b", "a..b", ".a", "a.", "a\n", "é.b", "x" * 300, "a/b"])
def test_what_is_no_name_of_linkerds_names_nobody(name: str) -> None:
    with pytest.raises(UnauthenticatedError):
        principal_of_linkerd(name)


def test_a_certificate_names_its_only_uri_or_its_only_host() -> None:
    authority = Authority()
    assert principal_of_certificate(authority.issue(uris=[SHOP], hosts=["a.example", "b"]).certificate) == SHOP
    assert principal_of_certificate(authority.issue(hosts=["Billing.example"]).certificate) == "dns:billing.example"


@pytest.mark.parametrize(
    ("uris", "hosts"),
    [((), ()), ((), ("a", "b")), ((SHOP, SHOP + "2"), ()), (("spiffe://mesh.example",), ()), ((), ("*.example",))],
)
def test_a_certificate_of_no_or_of_several_names_is_nobodys(uris: tuple[str, ...], hosts: tuple[str, ...]) -> None:
    with pytest.raises(UnauthenticatedError):
        principal_of_certificate(Authority().issue(uris=uris, hosts=hosts, subject=SHOP).certificate)


def test_what_is_no_certificate_is_nobodys() -> None:
    with pytest.raises(UnauthenticatedError):
        principal_of_certificate(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")


def test_other_uris_are_taken_as_they_are() -> None:
    assert checked_uri("https://issuer.example/users/7") == "https://issuer.example/users/7"
    with pytest.raises(UnauthenticatedError):
        checked_uri("SPIFFE://mesh.example/x")


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:127.0.0.1:5555", "127.0.0.1"),
        ("ipv6:[::1]:5555", "::1"),
        ("ipv6:%5B::1%5D:5555", "::1"),
        ("ipv6:%5B::ffff:127.0.0.1%5D:5555", "127.0.0.1"),
        ("unix:/tmp/x", None),
        ("unix:", None),
        ("ipv4:localhost:1", None),
        ("127.0.0.1:1", None),
        ("", None),
    ],
)
def test_a_peers_address_is_read_or_there_is_none(peer: str, address: str | None) -> None:
    assert address_of_peer(peer) == (None if address is None else ip_address(address))
