"""What the settings promise: one prefix, nothing unknown, nothing out of bounds, no secret shown."""

from __future__ import annotations

import re
from ipaddress import ip_network
from pathlib import Path

import pytest
from pydantic import ValidationError

from dispatcher.config import (
    GROUPS,
    SERVE_REQUIRES,
    ConfigError,
    Settings,
    mask_dsn,
)
from dispatcher.config.groups import DeliverySettings, SecuritySettings, split_address
from docs.generate import FOLDER, PAGES


def problems_of(environ: dict[str, str], **options: tuple[str, ...]) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        Settings.load(environ, **options)
    return caught.value.problems


def test_an_empty_environment_gives_the_defaults() -> None:
    settings = Settings.load({"PATH": "/bin", "DISPATCHER_IN_FLIGHT_MAX": ""})
    assert settings.in_flight_max == 512
    assert settings.database_url is None
    assert all(line.origin == "default" for line in settings.effective())


def test_values_are_read_with_their_types() -> None:
    settings = Settings.load(
        {
            "DISPATCHER_LEASE_TTL_S": "7.5",
            "DISPATCHER_DATABASE_POOLED": "true",
            "DISPATCHER_EGRESS_ALLOWED_NETWORKS": "10.0.0.0/8, fd00::/8",
            "DISPATCHER_EGRESS_ALLOWED_PORTS": "443,8443",
        }
    )
    assert settings.lease_ttl_s == 7.5
    assert settings.database_pooled is True
    assert settings.egress_allowed_networks == (ip_network("10.0.0.0/8"), ip_network("fd00::/8"))
    assert settings.egress_allowed_ports == "443,8443"


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Settings().in_flight_max = 1  # type: ignore[misc]  # the point of the test


def test_an_unknown_variable_is_named_with_the_nearest_known_one() -> None:
    assert problems_of({"DISPATCHER_IN_FLIGHT_MX": "3"}) == (
        "DISPATCHER_IN_FLIGHT_MX: unknown setting; did you mean DISPATCHER_IN_FLIGHT_MAX?",
    )


def test_a_variable_in_wrong_case_is_unknown() -> None:
    assert "did you mean DISPATCHER_LOG_LEVEL?" in problems_of({"DISPATCHER_log_level": "info"})[0]


def test_a_file_variable_of_a_plain_setting_is_unknown() -> None:
    assert "DISPATCHER_LOG_LEVEL_FILE: unknown setting" in problems_of({"DISPATCHER_LOG_LEVEL_FILE": "/x"})[0]


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("IN_FLIGHT_MAX", "0"),
        ("IN_FLIGHT_MAX", "many"),
        ("IN_FLIGHT_MAX", "1.5"),
        ("LEASE_TTL_S", "nan"),
        ("LEASE_TTL_S", "inf"),
        ("GRPC_LISTEN", "50051"),
        ("GRPC_LISTEN", "host:70000"),
        ("LOG_FORMAT", "xml"),
        ("DATABASE_POOLED", "perhaps"),
        ("EGRESS_ALLOWED_NETWORKS", "10.0.0.1/8"),
        ("EGRESS_ALLOWED_PORTS", "443,0"),
        ("EGRESS_PROXY_PROBE_TARGET", "check.example"),
        ("EGRESS_PROXY_PROBE_TARGET", "http://check.example:443"),
        ("EGRESS_PROXY_PROBE_TARGET", "user@check.example:443"),
        ("EGRESS_PROXY_PROBE_TARGET", "check.example:70000"),
        ("EGRESS_PROXY_PROBE_TARGET", "check.example:443/path"),
        ("EGRESS_PROXY_PROBE_TARGET", "a\r\nb:443"),
        ("EGRESS_PROXY_PROBE_TARGET", "a b:443"),
        ("EGRESS_PROXY_PROBE_TARGET", "h\x01:443"),
        ("EGRESS_PROXY_PROBE_TARGET", "a..b:443"),
        ("EGRESS_PROXY_PROBE_TARGET", "10.0.0.256:443"),
        ("EGRESS_PROXY_PROBE_TARGET", "[::g]:443"),
        ("EGRESS_PROXY_PROBE_TARGET", "check.example:0"),
        ("EGRESS_PROXY_PROBE_TARGET", "check.example:443\n"),
        ("USER_AGENT", "a\r\nb"),
    ],
)
def test_an_invalid_value_is_an_error_that_names_its_variable(variable: str, value: str) -> None:
    (problem,) = problems_of({f"DISPATCHER_{variable}": value})
    assert problem.startswith(f"DISPATCHER_{variable}: ")
    assert f"(got {value!r})" in problem


def test_all_problems_are_told_at_once() -> None:
    problems = problems_of(
        {"DISPATCHER_NONSENSE": "1", "DISPATCHER_IN_FLIGHT_MAX": "0", "DISPATCHER_OPS_LISTEN": "x"},
        required=SERVE_REQUIRES,
    )
    assert [problem.partition(":")[0].removeprefix("DISPATCHER_") for problem in problems] == [
        "AUTH_MODE",
        "DATABASE_URL",
        "IN_FLIGHT_MAX",
        "NONSENSE",
        "OPS_LISTEN",
        "SECRET_KEYS",
    ]


def test_settings_that_contradict_each_other_are_an_error() -> None:
    problems = problems_of({"DISPATCHER_RETRY_MIN_S": "60", "DISPATCHER_RETRY_MAX_S": "1"})
    assert problems == ("DISPATCHER_RETRY_MIN_S: must not exceed DISPATCHER_RETRY_MAX_S",)


def test_variables_kubernetes_makes_for_a_service_are_ignored() -> None:
    Settings.load(
        {
            "DISPATCHER_SERVICE_HOST": "10.0.0.1",
            "DISPATCHER_SERVICE_PORT_GRPC": "50051",
            "DISPATCHER_PORT": "tcp://10.0.0.1:50051",
            "DISPATCHER_PORT_50051_TCP_ADDR": "10.0.0.1",
            "DISPATCHER_ADMIN_PORT_50052_TCP": "tcp://10.0.0.1:50052",
            "DISPATCHER_TEST_DSN": "postgresql://x",
        }
    )


def test_no_setting_is_hidden_by_what_is_ignored() -> None:
    for line in Settings().effective():
        if not line.value:
            continue
        read = Settings.load({line.variable: line.value})
        assert line.name in read.model_fields_set


def test_a_secret_is_read_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "dsn"
    file.write_text("postgresql://u:pw@db/app\n")
    settings = Settings.load({"DISPATCHER_DATABASE_URL_FILE": str(file)}, required=("database_url",))
    assert settings.database_url is not None
    assert settings.database_url.get_secret_value() == "postgresql://u:pw@db/app"


def test_a_secret_file_that_cannot_be_read_is_one_problem() -> None:
    problems = problems_of({"DISPATCHER_DATABASE_URL_FILE": "/does/not/exist"}, required=("database_url",))
    assert problems == ("DISPATCHER_DATABASE_URL_FILE: cannot read the file: No such file or directory",)


@pytest.mark.parametrize(("content", "word"), [(b"", "empty"), (b"x" * 70_000, "too large"), (b"\xff\xfe", "UTF-8")])
def test_a_secret_file_with_no_sensible_content_is_refused(tmp_path: Path, content: bytes, word: str) -> None:
    file = tmp_path / "keys"
    file.write_bytes(content)
    assert word in problems_of({"DISPATCHER_SECRET_KEYS_FILE": str(file)})[0]


def test_a_secret_given_twice_is_refused(tmp_path: Path) -> None:
    environ = {"DISPATCHER_SECRET_KEYS": "k1:x", "DISPATCHER_SECRET_KEYS_FILE": str(tmp_path / "keys")}
    assert problems_of(environ) == ("DISPATCHER_SECRET_KEYS_FILE: DISPATCHER_SECRET_KEYS is set as well; keep one",)


def test_no_secret_is_ever_shown() -> None:
    environ = {
        "DISPATCHER_DATABASE_URL": "postgresql://app:hunter2@db:5432/app",
        "DISPATCHER_SECRET_KEYS": "postgresql://hunter2",  # looks like a URL and is a key all the same
    }
    settings = Settings.load(environ)
    shown = {line.name: line.value for line in settings.effective()}
    assert shown["database_url"] == "postgresql://app:***@db:5432/app"
    assert shown["secret_keys"] == "***"
    assert "hunter2" not in f"{settings!r}{settings}{shown}{settings.model_dump_json()}"


def test_an_error_shows_no_secret() -> None:
    problems = problems_of({"DISPATCHER_DATABASE_URL": "mysql://app:hunter2@db", "DISPATCHER_SECRET_KEYZ": "hunter2"})
    assert len(problems) == 2
    assert "hunter2" not in "".join(problems)


@pytest.mark.parametrize(
    ("dsn", "masked"),
    [
        ("postgresql://u@h/db", "postgresql://u@h/db"),
        ("postgresql://u:p%40@h1:1,h2:2/db?x=1", "postgresql://u:***@h1:1,h2:2/db?x=1"),
        (
            "postgresql://h/db?user=u&password=pw&sslpassword=pw",
            "postgresql://h/db?user=u&password=***&sslpassword=***",
        ),
        ("postgresql://h?password=pw", "postgresql://h?password=***"),
        ("postgresql:///db", "postgresql:///db"),
        ("postgresql://u:p@w@h/db", "***"),
        ("postgresql://u:p/w@h/db", "***"),
        ("postgresql://u:p/w?x@h/db", "***"),
        ("pw", "***"),
    ],
)
def test_the_password_of_a_database_url_is_masked(dsn: str, masked: str) -> None:
    assert mask_dsn(dsn) == masked


@pytest.mark.parametrize("target", ["check.example:443", "a_b-1.example.:8443", "10.0.0.1:443", "[2001:db8::1]:443"])
def test_what_the_proxy_is_asked_for_to_see_whether_it_works_is_a_host_and_a_port(target: str) -> None:
    assert SecuritySettings(egress_proxy_probe_target=target).egress_proxy_probe_target == target


def test_addresses_are_split_into_host_and_port() -> None:
    assert split_address("[::1]:8080") == ("::1", 8080)
    assert split_address("localhost:0") == ("localhost", 0)


def test_a_component_may_ask_for_its_group_alone() -> None:
    assert isinstance(Settings(), DeliverySettings)
    assert {name for group in GROUPS for name in group.model_fields} == set(Settings.model_fields)


def test_every_setting_is_described_and_every_number_is_bounded() -> None:
    for name, field in Settings.model_fields.items():
        assert field.description, name
        if field.annotation in (int, float):
            assert {key for item in field.metadata for key in ("ge", "le") if hasattr(item, key)} == {"ge", "le"}, name


@pytest.mark.parametrize("page", PAGES)
def test_the_generated_pages_are_current(page: str) -> None:
    assert (FOLDER / page).read_text() == PAGES[page](), "run `make docs`"


MODES = {
    "mtls": {"TLS_CERTIFICATE_FILE": "c", "TLS_KEY_FILE": "k", "TLS_CLIENT_CA_FILE": "r"},
    "xfcc": {},
    "linkerd": {},
    "jwt": {"AUTH_JWT_KEYS": "f", "AUTH_JWT_ISSUER": "i", "AUTH_JWT_AUDIENCES": "a"},
    "tokens": {"AUTH_TOKENS_FILE": "t"},
}


def auth(mode: str, **changed: str) -> dict[str, str]:
    values = {"AUTH_MODE": mode, "AUTH_POLICY_FILE": "p", **MODES.get(mode, {}), **changed}
    return {f"DISPATCHER_{name}": value for name, value in values.items()}


@pytest.mark.parametrize("mode", MODES)
def test_a_mode_needs_all_that_it_works_with(mode: str) -> None:
    assert Settings.load(auth(mode)).auth_mode == mode
    for name in ("AUTH_POLICY_FILE", *MODES[mode]):
        assert any(f"DISPATCHER_{name}: must be set for" in each for each in problems_of(auth(mode, **{name: ""})))


@pytest.mark.parametrize("mode", [*MODES, "none"])
def test_what_a_mode_would_not_heed_is_refused(mode: str) -> None:
    for other, variables in MODES.items():
        for name in variables if other != mode else ():
            if name not in ("TLS_CERTIFICATE_FILE", "TLS_KEY_FILE"):
                assert any(f"{name}: means nothing" in each for each in problems_of(auth(mode, **{name: "x"})))


def test_who_calls_is_never_guessed() -> None:
    assert problems_of({"DISPATCHER_AUTH_MODE": "auto"})
    assert any("AUTH_MODE: must be set" in each for each in problems_of({}, required=("auth_mode",)))
    assert any("https" in each for each in problems_of(auth("jwt", AUTH_JWT_KEYS="http://issuer.example/keys")))
    assert any("TLS_KEY_FILE" in each for each in problems_of(auth("tokens", TLS_CERTIFICATE_FILE="c")))


def test_the_longest_end_is_the_sum_that_the_page_tells() -> None:
    alone, supervised = Settings(), Settings(workers=4)
    assert (alone.stop_max_s, supervised.stop_max_s, supervised.process_stop_max_s) == (63, 71, 63)
    page = (FOLDER / "mesh.md").read_text()
    line = next(line for line in page.splitlines() if line.endswith("=  73 s"))
    pre_stop_s, *own_s = [int(number) for number in re.findall(r"\d+", line.partition("=")[0])]
    assert (pre_stop_s, sum(own_s)) == (10, alone.stop_max_s)
    assert f"more, {pre_stop_s + supervised.stop_max_s:g} s, for the supervisor" in page
