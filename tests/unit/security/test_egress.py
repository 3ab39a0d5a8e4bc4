"""Which addresses may be reached."""

from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.security.addresses import embedded_ipv4
from dispatcher.security.egress import (
    EgressPolicy,
    UrlRefusal,
    UrlRefusedError,
    check_url,
    is_address_allowed,
    parse_url,
    refused_kind,
)

PUBLIC = EgressPolicy()

REFUSED_ADDRESSES = [
    "0.0.0.0", "0.1.2.3", "10.0.0.1", "10.255.255.255", "100.64.0.1", "100.127.255.255", "100.100.100.200",
    "127.0.0.1", "127.255.255.255", "168.63.129.16", "169.254.169.254", "169.254.170.2", "169.254.0.1",
    "172.16.0.1", "172.31.255.255", "192.0.0.1", "192.0.0.192", "192.0.2.1", "192.31.196.1", "192.52.193.1",
    "192.88.99.1", "192.168.0.1", "192.175.48.1", "198.18.0.1", "198.19.255.255", "198.51.100.1", "203.0.113.1",
    "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255", "::", "::1", "::2", "::127.0.0.1", "::8.8.8.8",
    "::ffff:127.0.0.1", "::ffff:169.254.169.254", "::ffff:10.0.0.1", "::ffff:0.0.0.0", "::ffff:0:7f00:1",
    "::ffff:0:808:808", "64:ff9b::a9fe:a9fe", "64:ff9b::7f00:1", "64:ff9b::a00:1", "64:ff9b:1::1",
    "64:ff9b:1::808:808", "100::1", "2001::1", "2001:0:7f00:1::1", "2001:2::1", "2001:10::1", "2001:20::1",
    "2001:db8::1", "2002:a9fe:a9fe::", "2002:7f00:1::", "2002:808:808::1", "2620:4f:8000::1", "3fff::1", "4000::1",
    "5f00::1", "fc00::1", "fd00:ec2::254", "fd20:ce::254", "fe80::1", "fe80::1%eth0", "fec0::1", "ff02::1",
    "ff0e::1", "2606:4700::5efe:7f00:1", "2606:4700::200:5efe:a00:1", "2606:4700::1%eth0",
]  # fmt: skip

ALLOWED_ADDRESSES = [
    "1.1.1.1", "8.8.8.8", "9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0", "126.255.255.255",
    "128.0.0.0", "168.63.129.17", "169.253.255.255", "169.255.0.0", "172.15.255.255", "172.32.0.0", "192.0.1.0",
    "192.167.255.255", "192.169.0.0", "198.17.255.255", "198.20.0.0", "223.255.255.255", "2606:4700:4700::1111",
    "2001:4860:4860::8888", "2a00:1450:4001::1", "::ffff:8.8.8.8", "64:ff9b::808:808", "2606:4700::5efe:808:808",
]  # fmt: skip


@pytest.mark.parametrize("address", REFUSED_ADDRESSES)
def test_an_address_that_is_not_public_is_refused(address):
    assert not is_address_allowed(address, PUBLIC)


@pytest.mark.parametrize("address", ALLOWED_ADDRESSES)
def test_a_public_address_is_allowed(address):
    assert is_address_allowed(ip_address(address), PUBLIC)


@pytest.mark.parametrize("text", ["", "localhost", "127.1", "1.2.3.4/8"])
def test_what_is_no_address_is_refused(text):
    assert not is_address_allowed(text, PUBLIC)


@given(st.ip_addresses(v=4))
def test_we_refuse_every_ipv4_address_that_the_standard_library_knows_not_to_be_global(address):
    if not address.is_global or address.is_multicast:
        assert not is_address_allowed(address, PUBLIC)


@given(st.ip_addresses(v=6))
def test_we_refuse_every_ipv6_address_that_the_standard_library_knows_not_to_be_global(address):
    if (not address.is_global or address.is_multicast) and address.ipv4_mapped is None:
        assert not is_address_allowed(address, PUBLIC)


@given(st.ip_addresses(v=4))
def test_an_embedded_address_is_refused_wherever_its_plain_form_is(address):
    low = int(address)
    for carrier in (0xFFFF << 32, 0x64_FF9B << 96, (0x2606_4700 << 96) | (0x5EFE << 32)):
        carried = IPv6Address(carrier | low)
        assert is_address_allowed(carried, PUBLIC) == is_address_allowed(address, PUBLIC)


@pytest.mark.parametrize(
    ("address", "embedded"),
    [
        ("::ffff:1.2.3.4", ["1.2.3.4"]),
        ("::1.2.3.4", ["1.2.3.4"]),
        ("::ffff:0:102:304", ["1.2.3.4"]),
        ("64:ff9b::102:304", ["1.2.3.4"]),
        ("64:ff9b:1::102:304", ["1.2.3.4"]),
        ("2002:102:304::", ["1.2.3.4"]),
        ("2001:0:102:304:0:0:fefd:fcfb", ["1.2.3.4", "1.2.3.4"]),
        ("2606:4700::5efe:1.2.3.4", ["1.2.3.4"]),
        ("::1", []),
        ("2606:4700::1", []),
    ],
)
def test_embedded_ipv4_is_decoded(address, embedded):
    assert embedded_ipv4(IPv6Address(address)) == tuple(IPv4Address(text) for text in embedded)


def test_only_the_configured_networks_are_opened():
    policy = EgressPolicy.from_text(networks="10.1.0.0/16, fd12::/16")
    assert is_address_allowed("10.1.2.3", policy)
    assert is_address_allowed("fd12::1", policy)
    assert is_address_allowed("::ffff:10.1.2.3", policy)
    assert is_address_allowed("64:ff9b::a01:203", policy)
    for address in ("10.2.0.1", "fd13::1", "127.0.0.1", "::ffff:10.2.0.1"):
        assert not is_address_allowed(address, policy)


def test_a_transition_address_needs_both_itself_and_what_it_embeds_allowed():
    assert not is_address_allowed("2002:7f00:1::", EgressPolicy.from_text(networks="2002::/16"))
    assert not is_address_allowed("2002:7f00:1::", EgressPolicy.from_text(networks="127.0.0.0/8"))
    assert is_address_allowed("2002:7f00:1::", EgressPolicy.from_text(networks="2002::/16,127.0.0.0/8"))


@pytest.mark.parametrize("address", ["169.254.169.254", "100.100.100.200", "168.63.129.16", "fd00:ec2::254"])
def test_a_metadata_service_is_opened_only_by_naming_it(address):
    assert not is_address_allowed(address, EgressPolicy.from_text(networks="0.0.0.0/0,::/0"))
    assert is_address_allowed(address, EgressPolicy.from_text(networks=address))


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "224.0.0.1", "255.255.255.255", "ff02::1"])
def test_no_setting_opens_what_is_no_single_host(address):
    assert not is_address_allowed(address, EgressPolicy.from_text(networks=f"0.0.0.0/0,::/0,{address}"))


def test_an_allowed_host_may_resolve_to_private_addresses_and_no_others_may():
    policy = EgressPolicy.from_text(hosts="*.svc.cluster.local, internal.example")
    for host in ("api.shop.svc.cluster.local", "internal.example", "a.internal.example"):
        assert is_address_allowed("10.1.2.3", policy, host)
        assert is_address_allowed("100.64.1.1", policy, host)
        assert is_address_allowed("fd12::1", policy, host)
        for address in ("127.0.0.1", "169.254.169.254", "fd00:ec2::254", "0.0.0.0", "::1", "fe80::1"):
            assert not is_address_allowed(address, policy, host)
    for host in ("xinternal.example", "svc.cluster.local.evil.example", None):
        assert not is_address_allowed("10.1.2.3", policy, host)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://169.254.169.254/latest/meta-data", UrlRefusal.ADDRESS_NOT_ALLOWED),
        ("http://[::ffff:169.254.169.254]/", UrlRefusal.ADDRESS_NOT_ALLOWED),
        ("http://[64:ff9b::a9fe:a9fe]/", UrlRefusal.ADDRESS_NOT_ALLOWED),
        ("https://10.0.0.1/", UrlRefusal.ADDRESS_NOT_ALLOWED),
        ("https://localhost/", UrlRefusal.NAME_NOT_ALLOWED),
        ("https://api.localhost:8443/", UrlRefusal.NAME_NOT_ALLOWED),
        ("https://metadata.google.internal/", UrlRefusal.NAME_NOT_ALLOWED),
        ("https://api.shop.svc.cluster.local/", UrlRefusal.NAME_NOT_ALLOWED),
        ("https://printer.local/", UrlRefusal.NAME_NOT_ALLOWED),
        ("https://example.com:22/", UrlRefusal.PORT_NOT_ALLOWED),
        ("https://example.com:25/", UrlRefusal.PORT_NOT_ALLOWED),
    ],
)
def test_the_early_check_refuses_with_a_reason(url, reason):
    with pytest.raises(UrlRefusedError) as refused:
        check_url(parse_url(url), PUBLIC)
    assert refused.value.reason is reason


def test_the_early_check_passes_what_may_be_reached():
    check_url(parse_url("https://example.com/hook"), PUBLIC)
    check_url(parse_url("http://example.com:8080/hook"), PUBLIC)
    check_url(parse_url("http://localhost:8080/"), EgressPolicy.for_development())
    check_url(parse_url("http://127.0.0.1:8080/"), EgressPolicy.for_development())
    check_url(parse_url("http://api.shop.svc.cluster.local/"), EgressPolicy.from_text(hosts="svc.cluster.local"))


def test_plain_http_can_be_closed():
    with pytest.raises(UrlRefusedError) as refused:
        check_url(parse_url("http://example.com/"), EgressPolicy.from_text(allow_http=False))
    assert refused.value.reason is UrlRefusal.SCHEME


def test_allowed_ports_are_a_setting():
    policy = EgressPolicy.from_text(ports="443, 9000-9100")
    assert [port for port in (80, 443, 8999, 9000, 9100, 9101) if policy.allows_port(port)] == [443, 9000, 9100]


@pytest.mark.parametrize(
    "settings",
    [
        {"networks": "10.0.0.1/8"}, {"networks": "10.0.0.0/33"}, {"networks": "example.com"}, {"hosts": "a b"},
        {"hosts": "10.0.0.1"}, {"hosts": "*"}, {"hosts": "example.com/x"}, {"ports": "0"}, {"ports": "a"},
        {"ports": "90-80"}, {"ports": "65536"}, {"ports": "80-"},
    ],
)  # fmt: skip
def test_a_bad_setting_is_refused(settings):
    with pytest.raises(ValueError, match=r"\w"):
        EgressPolicy.from_text(**settings)


def test_the_default_policy_is_the_default_of_the_settings():
    assert EgressPolicy.from_text() == EgressPolicy()
    assert refused_kind("8.8.8.8", EgressPolicy.from_text()) is None
