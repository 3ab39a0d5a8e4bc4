"""One strict reading of URLs; what two parsers would read differently is refused."""

import ipaddress
import urllib.parse

import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from dispatcher.security.urls import UrlRefusal, UrlRefusedError, parse_url


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("https://example.com", "https://example.com/"),
        ("HTTPS://EXAMPLE.com:443/Path?q=%20&r=/?", "https://example.com/Path?q=%20&r=/?"),
        ("http://example.com:8080?x", "http://example.com:8080/?x"),
        ("https://bücher.example/", "https://xn--bcher-kva.example/"),
        ("https://xn--bcher-kva.example/", "https://xn--bcher-kva.example/"),
        ("https://\uff25xample.com/", "https://example.com/"),  # a full-width letter
        ("https://ex。ample.com/", "https://ex.ample.com/"),
        ("https://8.8.8.8/a", "https://8.8.8.8/a"),
        ("https://[2606:4700:0:0::1111]:8443/", "https://[2606:4700::1111]:8443/"),
        ("http://receiver/hook;v=1", "http://receiver/hook;v=1"),
        ("https://my--app.example/a/../b//c", "https://my--app.example/a/../b//c"),
        ("https://3com.example.2x/", "https://3com.example.2x/"),
    ],
)
def test_a_good_url_has_one_normal_form(text, normal):
    url = parse_url(text)
    assert url.text == normal
    assert parse_url(url.text) == url


REFUSED = {
    "short IPv4": ("http://127.1/", UrlRefusal.AMBIGUOUS_ADDRESS),
    "one number": ("http://2130706433/", UrlRefusal.AMBIGUOUS_ADDRESS),
    "hexadecimal": ("http://0x7f000001/", UrlRefusal.AMBIGUOUS_ADDRESS),
    "hexadecimal part": ("http://127.0.0.0x1/", UrlRefusal.AMBIGUOUS_ADDRESS),
    "bare 0x": ("http://127.0.0.0x/", UrlRefusal.AMBIGUOUS_ADDRESS),
    "octal": ("http://0177.0.0.1/", UrlRefusal.AMBIGUOUS_ADDRESS),
    "leading zero": ("http://127.0.0.01/", UrlRefusal.AMBIGUOUS_ADDRESS),
    "circled digits": ("http://①②⑦.0.0.1/", UrlRefusal.AMBIGUOUS_ADDRESS),
    "full-width digits": ("http://\uff11\uff12\uff17.0.0.1/", UrlRefusal.AMBIGUOUS_ADDRESS),
    "ideographic dots": ("http://127。0。0。1/", UrlRefusal.AMBIGUOUS_ADDRESS),
    "part too large": ("http://256.1.1.1/", UrlRefusal.AMBIGUOUS_ADDRESS),
    "five parts": ("http://1.2.3.4.5/", UrlRefusal.AMBIGUOUS_ADDRESS),
    "name ending in a number": ("http://evil.example.7/", UrlRefusal.AMBIGUOUS_ADDRESS),
    "percent-encoded host": ("http://%31%32%37.0.0.1/", UrlRefusal.HOST),
    "zone id": ("http://[fe80::1%25eth0]/", UrlRefusal.HOST),
    "raw zone id": ("http://[fe80::1%eth0]/", UrlRefusal.HOST),
    "unclosed bracket": ("http://[::1/", UrlRefusal.HOST),
    "bracket in name": ("http://a[b]/", UrlRefusal.HOST),
    "IPv4 in brackets": ("http://[127.0.0.1]/", UrlRefusal.HOST),
    "IPv6 without brackets": ("http://::1/", UrlRefusal.HOST),
    "future address": ("http://[v1.a]/", UrlRefusal.HOST),
    "text after bracket": ("http://[::1]x/", UrlRefusal.HOST),
    "backslash": ("http://good.com\\@evil.com/", UrlRefusal.FORBIDDEN_CHARACTER),
    "user": ("http://user@example.com/", UrlRefusal.USER_INFO),
    "user and password": ("http://u:p@example.com/", UrlRefusal.USER_INFO),
    "empty user": ("http://@example.com/", UrlRefusal.USER_INFO),
    "two at signs": ("http://a@b@c/", UrlRefusal.USER_INFO),
    "tab": ("http://exam\tple.com/", UrlRefusal.FORBIDDEN_CHARACTER),
    "CRLF": ("http://example.com/\r\nX: y", UrlRefusal.FORBIDDEN_CHARACTER),
    "newline at the end": ("http://example.com/\n", UrlRefusal.FORBIDDEN_CHARACTER),
    "leading space": (" http://example.com/", UrlRefusal.FORBIDDEN_CHARACTER),
    "NUL": ("http://example.com/\x00", UrlRefusal.FORBIDDEN_CHARACTER),
    "DEL": ("http://example.com/\x7f", UrlRefusal.FORBIDDEN_CHARACTER),
    "no-break space": ("http://example.com/\xa0", UrlRefusal.FORBIDDEN_CHARACTER),
    "zero-width space": ("http://exa\u200bmple.com/", UrlRefusal.FORBIDDEN_CHARACTER),
    "right-to-left mark": ("http://\u202eexample.com/", UrlRefusal.FORBIDDEN_CHARACTER),
    "port 0": ("http://example.com:0/", UrlRefusal.PORT),
    "port 99999": ("http://example.com:99999/", UrlRefusal.PORT),
    "empty port": ("http://example.com:/", UrlRefusal.PORT),
    "port with zeros": ("http://example.com:0080/", UrlRefusal.PORT),
    "port with sign": ("http://example.com:+80/", UrlRefusal.PORT),
    "port with letters": ("http://example.com:80a/", UrlRefusal.PORT),
    "Arabic digits": ("http://example.com:٨٠/", UrlRefusal.PORT),
    "two ports": ("http://example.com:80:81/", UrlRefusal.PORT),
    "file": ("file:///etc/passwd", UrlRefusal.SCHEME),
    "gopher": ("gopher://example.com/", UrlRefusal.SCHEME),
    "ftp": ("ftp://example.com/", UrlRefusal.SCHEME),
    "javascript": ("javascript:alert(1)", UrlRefusal.SCHEME),
    "no scheme": ("example.com/", UrlRefusal.SCHEME),
    "scheme-relative": ("//example.com/", UrlRefusal.SCHEME),
    "empty": ("", UrlRefusal.SCHEME),
    "no slashes": ("http:example.com", UrlRefusal.MALFORMED),
    "one slash": ("http:/example.com", UrlRefusal.MALFORMED),
    "no host": ("http://", UrlRefusal.HOST),
    "three slashes": ("http:///example.com", UrlRefusal.HOST),
    "only a port": ("http://:80/", UrlRefusal.HOST),
    "trailing dot": ("http://example.com./", UrlRefusal.HOST),
    "empty label": ("http://a..b/", UrlRefusal.HOST),
    "leading dot": ("http://.example.com/", UrlRefusal.HOST),
    "only a dot": ("http://./", UrlRefusal.HOST),
    "leading hyphen": ("http://-a.example/", UrlRefusal.HOST),
    "underscore": ("http://a_b.example/", UrlRefusal.HOST),
    "label of 64": (f"http://{'a' * 64}.example/", UrlRefusal.HOST),
    "host of 254": (f"http://{'a.' * 127}example/", UrlRefusal.HOST),
    "bad punycode": ("http://xn--a/", UrlRefusal.HOST),
    "punycode of ASCII": ("http://xn--example-.com/", UrlRefusal.HOST),
    "mixed direction": ("http://aא.example/", UrlRefusal.HOST),
    "comma in host": ("http://a,b/", UrlRefusal.HOST),
    "semicolon in host": ("http://a;b/", UrlRefusal.HOST),
    "fragment": ("http://example.com/#x", UrlRefusal.FRAGMENT),
    "empty fragment": ("http://example.com/#", UrlRefusal.FRAGMENT),
    "fragment before at": ("http://good.com#@evil.com/", UrlRefusal.FRAGMENT),
    "bad escape": ("http://example.com/%zz", UrlRefusal.FORBIDDEN_CHARACTER),
    "cut escape": ("http://example.com/%2", UrlRefusal.FORBIDDEN_CHARACTER),
    "letters beyond ASCII in the path": ("http://example.com/é", UrlRefusal.FORBIDDEN_CHARACTER),
    "brackets in the path": ("http://example.com/[a]", UrlRefusal.FORBIDDEN_CHARACTER),
    "10 kB": (f"http://example.com/{'a' * 10_000}", UrlRefusal.TOO_LONG),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_bad_url_is_refused_with_its_reason(name):
    text, reason = REFUSED[name]
    with pytest.raises(UrlRefusedError) as refused:
        parse_url(text)
    assert refused.value.reason is reason
    assert refused.value.description


def test_a_url_of_2048_characters_is_the_longest():
    longest = "https://example.com/".ljust(2048, "a")
    assert parse_url(longest).text == longest
    with pytest.raises(UrlRefusedError):
        parse_url(longest + "a")


def test_the_origin_keeps_paths_and_queries_to_itself():
    assert parse_url("https://example.com:8443/secret?token=1").origin == "https://example.com:8443"
    assert parse_url("http://[::1]/secret").origin == "http://[::1]"


URL_ALPHABET = st.sampled_from([*"ah01.:/@[]%#?\\-_~x", "http://", "127.0.0.1", "①", "。", "é", "\t", "xn--", "::1"])


@given(st.lists(URL_ALPHABET, max_size=30).map("".join) | st.text(max_size=60))
def test_whatever_is_accepted_is_read_alike_by_other_parsers(text):
    for candidate in (text, f"https://{text}"):
        try:
            url = parse_url(candidate)
        except UrlRefusedError:
            continue
        other, third = urllib.parse.urlsplit(url.text), URL(url.text)
        assert (other.hostname, third.raw_host) == (url.host, url.host)
        assert (other.port or {"http": 80, "https": 443}[url.scheme], third.port) == (url.port, url.port)
        assert url.wire.raw_path_qs == url.target
        assert url.text.isascii()
        if url.address is None:
            with pytest.raises(ValueError, match="does not appear"):
                ipaddress.ip_address(url.host)
