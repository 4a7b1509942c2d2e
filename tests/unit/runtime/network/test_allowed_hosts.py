"""Where URLs from a server may lead."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from arc_runtime.network.allowed_hosts import (
    HostPolicy,
    HostRefused,
    ServerAddresses,
    UnprovenAddress,
)

PUBLIC_SERVER = "https://arc.example.com/v1"

REFUSED = [
    "http://169.254.169.254/latest/meta-data",
    "http://[fe80::1]/",
    "http://[fe80::1%25eth0]/",
    "http://[fd00:ec2::254]/",
    "http://[::ffff:169.254.169.254]/",
    "http://[64:ff9b::a9fe:a9fe]/",
    "http://[2002:a9fe:a9fe::]/",
    "http://100.100.100.200/",
    "http://168.63.129.16/",
    "http://metadata.google.internal/",
    "http://METADATA.google.internal./",
    "http://0.0.0.0/",
    "http://[::]/",
    "http://127.0.0.1/",
    "http://127.1/",
    "http://2130706433/",
    "http://0x7f000001/",
    "http://0177.0.0.1/",
    "http://[::1]/",
    "http://[::ffff:127.0.0.1]/",
    "http://[::7f00:1]/",
    "http://10.0.0.1/",
    "http://172.16.0.1/",
    "http://192.168.1.1/",
    "http://100.64.0.1/",
    "http://[fc00::1]/",
    "http://224.0.0.1/",
    "http://[64:ff9b:1::a9fe:a9fe]/",
    "http://[fec0::1]/",
    "http://127%2e0%2e0%2e1/",
    "http://\u2460\u2461\u2466.0.0.1/",
    "http://255.255.255.255/",
    "ftp://blobs.example.com/",
    "file:///etc/passwd",
    "gopher://blobs.example.com/",
    "//blobs.example.com/",
    "http:///path",
    "http://user:pass@blobs.example.com/",
    "http://blobs.example.com:99999/",
    "http://[bad/",
    "",
]


@pytest.mark.parametrize("url", REFUSED)
def test_a_url_that_leads_astray_is_refused(url: str) -> None:
    with pytest.raises(HostRefused):
        HostPolicy(PUBLIC_SERVER, []).check(url)


@pytest.mark.parametrize(
    "url",
    [
        "https://arc.example.com/v1/commands",
        "https://bucket.s3.amazonaws.com/key?sig=1",
        "http://93.184.216.34/",
        "https://[2606:2800:220:1:248:1893:25c8:1946]/",
    ],
)
def test_public_hosts_are_allowed(url: str) -> None:
    HostPolicy(PUBLIC_SERVER, []).check(url)


def test_a_name_is_judged_by_what_it_stands_for() -> None:
    policy = HostPolicy(PUBLIC_SERVER, [])

    policy.check_address("blobs.example.com", "93.184.216.34", 443)
    for address in ("127.0.0.1", "10.0.0.1", "169.254.169.254", "::1", "fe80::1%eth0"):
        with pytest.raises(HostRefused):
            policy.check_address("blobs.example.com", address, 443)


def test_the_servers_own_name_may_be_private_at_its_own_port_but_never_link_local() -> None:
    policy = HostPolicy("https://arc.corp:8443", [])

    policy.check_address("arc.corp", "10.1.2.3", 8443)
    policy.check_address("ARC.corp.", "127.0.0.1", 8443)
    with pytest.raises(HostRefused):
        policy.check_address("arc.corp", "169.254.169.254", 8443)


@pytest.mark.parametrize("server", [PUBLIC_SERVER, "http://arc.example.com:8700"])
@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "10.0.0.7", "192.168.1.1", "fc00::1"])
@pytest.mark.parametrize("port", [80, 5432, 8500])
def test_the_servers_own_name_opens_no_other_service(server: str, address: str, port: int) -> None:
    policy = HostPolicy(server, [])

    with pytest.raises(HostRefused):
        policy.check_address("arc.example.com", address, port)


def test_the_servers_own_name_may_be_a_public_host_at_any_port() -> None:
    HostPolicy(PUBLIC_SERVER, []).check_address("arc.example.com", "93.184.216.34", 9000)


@pytest.mark.parametrize(
    ("server", "url"),
    [
        ("https://arc.corp:8443", "http://arc.corp:8443/v1"),
        ("http://arc.corp:8700", "https://arc.corp:8700/v1"),
        ("http://localhost:8700", "https://127.0.0.1:8700/v1"),
        ("https://10.0.0.5:8443", "http://10.0.0.5:8443/v1"),
    ],
)
def test_the_server_is_not_called_by_another_scheme(server: str, url: str) -> None:
    with pytest.raises(HostRefused, match="is the server, which is not called by http"):
        HostPolicy(server, []).check(url)


def test_without_a_certificate_the_servers_name_counts_where_the_server_has_answered() -> None:
    addresses = ServerAddresses()
    policy = HostPolicy("http://arc.corp:8700", [], has_answered=addresses.__contains__)

    with pytest.raises(UnprovenAddress):
        policy.check_address("arc.corp", "10.1.2.3", 8700)
    addresses.add("::ffff:10.1.2.3")
    policy.check_address("arc.corp", "10.1.2.3", 8700)
    with pytest.raises(UnprovenAddress):
        policy.check_address("arc.corp", "127.0.0.1", 8700)
    policy.check_address("arc.corp", "93.184.216.34", 8700)


def test_an_address_in_place_of_a_name_is_as_configured() -> None:
    policy = HostPolicy("http://10.1.2.3:8700", [], has_answered=lambda _: False)

    policy.check("http://10.1.2.3:8700/v1")
    with pytest.raises(HostRefused):
        policy.check("http://10.1.2.3:9000/v1")
    with pytest.raises(HostRefused):
        policy.check("http://10.1.2.4:8700/v1")


def test_a_bounded_number_of_the_servers_addresses_is_remembered() -> None:
    addresses = ServerAddresses()

    for last in range(20):
        addresses.add(f"10.0.0.{last}")

    assert ip_address("10.0.0.19") in addresses
    assert ip_address("10.0.0.0") not in addresses


def test_a_server_on_this_machine_may_be_called_by_its_other_names() -> None:
    policy = HostPolicy("http://localhost:8700", [])

    policy.check("http://127.0.0.1:8700/v1")
    policy.check("http://[::1]:8700/v1")
    with pytest.raises(HostRefused):
        policy.check("http://127.0.0.1:5432/")


@pytest.mark.parametrize(
    ("allowed", "url"),
    [
        ("10.2.0.0/16", "http://10.2.3.4/"),
        ("10.2.3.4", "http://10.2.3.4/"),
        ("fc00::/7", "http://[fc00::5]/"),
        ("127.0.0.1", "http://127.0.0.1:9000/"),
    ],
)
def test_private_hosts_are_allowed_where_they_are_named(allowed: str, url: str) -> None:
    HostPolicy(PUBLIC_SERVER, [allowed]).check(url)


def test_names_in_the_list_may_stand_for_private_addresses() -> None:
    policy = HostPolicy(PUBLIC_SERVER, ["minio.corp", "*.blobs.corp"])

    policy.check_address("minio.corp", "10.0.0.1", 443)
    policy.check_address("a.blobs.corp", "10.0.0.1", 443)
    with pytest.raises(HostRefused):
        policy.check_address("blobs.corp", "10.0.0.1", 443)
    with pytest.raises(HostRefused):
        policy.check_address("notminio.corp", "10.0.0.1", 443)


@pytest.mark.parametrize("listed", ["169.254.0.0/16", "0.0.0.0/0", "169.254.169.254"])
def test_no_list_opens_the_metadata_services(listed: str) -> None:
    with pytest.raises(HostRefused):
        HostPolicy(PUBLIC_SERVER, [listed]).check("http://169.254.169.254/")


def test_public_hosts_can_be_closed() -> None:
    policy = HostPolicy(PUBLIC_SERVER, ["blobs.example.org"], allows_public=False)

    policy.check("https://arc.example.com/")
    policy.check("https://blobs.example.org/")
    policy.check_address("blobs.example.org", "93.184.216.34", 443)
    with pytest.raises(HostRefused):
        policy.check("https://elsewhere.example.org/")
    with pytest.raises(HostRefused):
        policy.check("http://93.184.216.34/")


@pytest.mark.parametrize("entry", ["", "*", "10.0.0.0/99", "http://x", "a:b"])
def test_an_entry_that_is_neither_name_nor_network_is_refused(entry: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        HostPolicy(PUBLIC_SERVER, [entry])
