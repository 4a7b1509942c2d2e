"""Routes to the server: the proxy, the length of a poll, certificates, and their log lines."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import structlog
from yarl import URL

from arc_agent.config.sections import ProxySection, ServerSection, TlsSection
from arc_agent.net.proxies import Proxies
from arc_agent.net.routes import Routes
from arc_agent.net.tls import Tls, TlsError
from arc_runtime.network.allowed_hosts import HostPolicy, HostRefused
from arc_runtime.network.certificates import read_certificate
from arc_runtime.network.setting_names import SettingNames
from arc_runtime.network.tls_errors import explain
from tests.support.certificates import Authority

# Proxies


def named(proxies: Proxies, url: str) -> str | None:
    """Host and port of what is chosen."""
    proxy = proxies.of(url)
    return None if proxy is None else repr(proxy)


ENVIRONMENTS: list[tuple[dict[str, str], str, str | None]] = [
    ({}, "https://arc.corp/", None),
    ({"HTTPS_PROXY": "http://p:1"}, "https://arc.corp/", "p:1"),
    ({"https_proxy": "http://low:1", "HTTPS_PROXY": "http://up:1"}, "https://a/", "low:1"),
    ({"HTTPS_PROXY": "http://p:1"}, "http://arc.corp/", None),
    ({"ALL_PROXY": "p:1"}, "http://arc.corp/", "p:1"),
    ({"https_proxy": "http://p"}, "https://arc.corp/", "p:80"),
    ({"https_proxy": "https://p"}, "https://arc.corp/", "p:443"),
    ({"https_proxy": "http://[fd00::1]:3128"}, "https://arc.corp/", "fd00::1:3128"),
    ({"HTTP_PROXY": "http://p:1", "REQUEST_METHOD": "GET"}, "http://arc.corp/", None),
    *(
        ({"HTTPS_PROXY": "http://p:1", "NO_PROXY": listed}, url, chosen)
        for listed, url, chosen in [
            ("*", "https://arc.corp/", None),
            ("arc.corp", "https://arc.corp/", None),
            ("ARC.corp.", "https://arc.corp./", None),
            ("corp", "https://arc.corp/", None),
            (".corp, other", "https://arc.corp/", None),
            ("*.corp", "https://arc.corp/", None),
            ("c.corp", "https://arc.corp/", "p:1"),
            ("arc.corp:443", "https://arc.corp/", None),
            ("arc.corp:8443", "https://arc.corp/", "p:1"),
            ("10.0.0.0/8", "https://10.2.3.4/", None),
            ("10.0.0.0/8", "https://11.2.3.4/", "p:1"),
            ("10.0.0.0/8", "https://arc.corp/", "p:1"),
            ("fd00::/8", "https://[fd00::5]/", None),
            ("[fd00::5]:8443", "https://[fd00::5]:8443/", None),
            ("[fd00::5]:8443", "https://[fd00::5]/", "p:1"),
            ("no/network, arc.corp", "https://arc.corp/", None),
            ("", "https://arc.corp/", "p:1"),
            ("", "https://127.0.0.1/", None),
            ("", "https://[::1]:8443/", None),
            ("", "https://localhost/", None),
            ("", "https://db.localhost/", None),
        ]
    ),
]


@pytest.mark.parametrize(("environ", "url", "chosen"), ENVIRONMENTS)
def test_the_environment_names_a_proxy_as_curl_reads_it(
    environ: dict[str, str], url: str, chosen: str | None
) -> None:
    assert named(Proxies(ProxySection(), environ), url) == chosen


def test_a_configured_proxy_wins_with_its_own_exceptions() -> None:
    section = ProxySection(url="proxy.corp:3128", except_hosts=["*.near.corp", "10.0.0.0/8"])
    proxies = Proxies(section, {"HTTPS_PROXY": "http://p:1", "NO_PROXY": "*"})

    assert named(proxies, "https://arc.far.corp/") == "proxy.corp:3128"
    assert named(proxies, "http://arc.far.corp/") == "proxy.corp:3128"
    assert named(proxies, "https://arc.near.corp/") is None
    assert named(proxies, "https://10.1.1.1/") is None


def test_the_environment_can_be_left_alone() -> None:
    proxies = Proxies(ProxySection(from_environment=False), {"HTTPS_PROXY": "http://p:1"})

    assert named(proxies, "https://arc.corp/") is None


def test_credentials_come_from_the_url_or_from_a_file_that_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "auth"
    file.write_text("me:p:wörd\n")
    by_file = Proxies(ProxySection(url="http://p:1", auth_file=file), {})
    by_url = Proxies(ProxySection(url="http://you:s%40fe@p:1", auth_file=file), {})

    def shown(proxies: Proxies) -> tuple[str | None, str | None]:
        proxy = proxies.of("https://arc.corp/")
        assert proxy is not None
        assert repr(proxy) == "p:1"
        user, password = proxy.url.user, proxy.url.password
        return user, password.encode("latin-1").decode() if password else None

    assert shown(by_file) == ("me", "p:wörd")
    assert shown(by_url) == ("you", "s@fe")
    file.write_text("me:another one")
    assert shown(by_file) == ("me", "another one")


@pytest.mark.parametrize("url", ["socks5://secret@p:1", "http://", "ftp://p", "http://p:99999"])
def test_a_proxy_of_another_kind_is_refused_without_quoting_it(url: str) -> None:
    with pytest.raises(ValueError, match="Expected an http") as caught:
        Proxies(ProxySection(url=url), {})
    with pytest.raises(ValueError, match="Expected an http"):
        Routes(ServerSection(url="https://a.b"), environ={"ALL_PROXY": url})
    assert "secret" not in str(caught.value)


def test_a_file_without_credentials_is_refused_without_quoting_it(tmp_path: Path) -> None:
    file = tmp_path / "auth"
    file.write_text("s3cret")

    with pytest.raises(ValueError, match="does not hold user:password") as caught:
        Proxies(ProxySection(url="http://p:1", auth_file=file), {})
    assert "s3cret" not in str(caught.value)


async def test_no_reason_holds_a_path_a_query_or_a_password() -> None:
    network = Routes(
        ServerSection(url="https://arc.corp"), ProxySection(url="http://u:s3cret@p:1"), environ={}
    )
    url = "https://arc.corp/blob?signature=s3cret"
    info = aiohttp.RequestInfo(URL(url), "GET", None, URL(url))  # pyright: ignore
    errors = [
        aiohttp.ClientHttpProxyError(info, (), status=407, message="No"),
        aiohttp.ClientHttpProxyError(info, (), status=403, message="No"),
        aiohttp.ClientResponseError(info, (), status=400, message="bad"),
        aiohttp.ConnectionTimeoutError(f"Connection timeout to host {url}"),
        aiohttp.InvalidURL(url),
        aiohttp.ServerDisconnectedError(),
        OSError(113, "No route to host"),
    ]

    reasons = [await network.reason(error, url) for error in errors]

    assert all("s3cret" not in reason and "/blob" not in reason for reason in reasons), reasons
    assert reasons[0].startswith("the proxy p:1 does not accept")
    assert reasons[1] == "the proxy p:1 does not allow it (403)"


# Hosts behind a proxy

BEHIND = [
    ("https://arc.corp/x", True),
    ("https://bucket.s3.amazonaws.com/x", True),
    ("https://blobs.near.corp/x", True),
    ("https://other.corp/x", False),
    ("https://intranet/x", False),
    ("https://printer.local/x", False),
    ("https://db.internal/x", False),
    ("https://localhost/x", False),
]


@pytest.mark.parametrize(("url", "is_allowed"), BEHIND)
def test_names_that_a_proxy_looks_up_are_judged_by_what_they_say(
    url: str, is_allowed: bool
) -> None:
    policy = HostPolicy("https://arc.corp", ["blobs.near.corp"])

    if is_allowed:
        policy.check_unresolved(url)
    else:
        with pytest.raises(HostRefused):
            policy.check_unresolved(url)


# Certificates


def test_a_certificate_says_who_it_is(tmp_path: Path) -> None:
    issued = Authority(tmp_path).issue("arc", ["arc.corp", "10.0.0.1", "fd00::1"])

    read = read_certificate(issued.der)

    assert read.subject == "O=Tests, CN=arc"
    assert read.issuer == "O=Tests, CN=Test CA"
    assert read.hosts == ("arc.corp", "10.0.0.1", "fd00::1")
    assert read.not_before == issued.certificate.not_valid_before_utc
    assert read.not_after == issued.certificate.not_valid_after_utc


def test_what_is_no_certificate_is_no_harm(tmp_path: Path) -> None:
    der = Authority(tmp_path).issue("arc", ["arc.corp"]).der
    for spoilt in (b"", b"\x30", b"\x30\x80", b"abc", *(der[:n] for n in range(len(der) - 1))):
        with pytest.raises(ValueError):  # noqa: PT011
            read_certificate(spoilt)
    for at in range(0, len(der), 3):
        with suppress(ValueError):
            read_certificate(der[:at] + b"\xff" + der[at + 1 :])


def test_a_clock_that_is_known_to_be_off_is_said_with_an_expired_certificate() -> None:
    names = SettingNames(ca_file="a", client_cert="b", proxy_credentials="c")
    text = explain(10, "", None, host="arc.corp", now=0.0, clock_offset=-7200.0, settings=names)

    assert "this host's clock says 1970-01-01T00:00Z, is that right?" in text
    assert "2.0 h behind the server's" in text


def test_a_name_in_a_certificate_cannot_break_a_line(tmp_path: Path) -> None:
    der = Authority(tmp_path).issue("evil\x1b[2J\nlog line").der

    assert "\n" not in str(read_certificate(der))
    assert "\x1b" not in str(read_certificate(der))


UNUSABLE: list[tuple[str, dict[str, str], str]] = [
    ("tls.ca_file", {"ca_file": "gone"}, "/gone cannot be used: No such file"),
    ("tls.ca_file", {"ca_file": "empty"}, "no readable PEM"),
    ("tls.crl_file", {"crl_file": "empty"}, "no readable PEM"),
    ("tls.client_cert", {"client_cert": "a.crt", "client_key": "b.key"}, "another certificate"),
    ("tls.client_cert", {"client_cert": "a.crt"}, "no readable PEM"),
    ("tls.client_cert", {"client_cert": "gone"}, "/gone cannot be used: No such file"),
    ("tls.client_key", {"client_cert": "a.crt", "client_key": "gone"}, "/gone cannot be used: No"),
    ("tls.client_key", {"client_key": "a.key"}, "needs tls.client_cert"),
    ("tls.ca_only", {}, "needs tls.ca_file"),
]


@pytest.mark.parametrize(("key", "files", "said"), UNUSABLE)
def test_files_that_cannot_be_used_are_named_by_their_key(
    tmp_path: Path, key: str, files: dict[str, str], said: str
) -> None:
    authority = Authority(tmp_path)
    authority.issue("a")
    authority.issue("b")
    (tmp_path / "empty").touch()
    paths: dict[str, Any] = {name: tmp_path / file for name, file in files.items()}

    with pytest.raises(TlsError, match=said) as caught:
        Tls(TlsSection(**paths, ca_only=key == "tls.ca_only"))
    assert caught.value.key == key


def test_changed_files_are_taken_in_when_they_fit_together(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca")
    first, second = authority.issue("first"), authority.issue("second")
    cert, key = tmp_path / "c", tmp_path / "k"
    cert.write_bytes(first.cert_file.read_bytes())
    key.write_bytes(first.key_file.read_bytes())
    tls = Tls(TlsSection(client_cert=cert, client_key=key))
    before = tls.context(is_own=True)
    with structlog.testing.capture_logs() as logged:
        assert tls.context(is_own=True) is before
        cert.write_bytes(second.cert_file.read_bytes())
        assert tls.context(is_own=True) is before
        assert tls.context(is_own=True) is before
        key.unlink()
        assert tls.context(is_own=True) is before
        key.write_bytes(second.key_file.read_bytes())
        assert tls.context(is_own=True) is not before

    assert tls.context(is_own=False) is True
    assert [each["event"] for each in logged] == ["tls.files_unusable", "tls.files_read_again"]


# The clock


def test_a_clock_that_is_off_is_told_once_and_once_when_it_is_right() -> None:
    now = 1_000_000.0
    network = Routes(ServerSection(url="https://a.b"), environ={}, wall_clock=lambda: now)
    with structlog.testing.capture_logs() as logged:
        for server_now in (now + 30, now - 3600, now - 3601, None, now + 7200, now, now + 1):
            network.observe_clock(server_now)

    assert [(each["event"], each.get("seconds")) for each in logged] == [
        ("clock.differs", 3600),
        ("clock.agrees", None),
    ]
