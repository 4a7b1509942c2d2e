"""Trusted proxies: who is one, and which client they say a request comes from."""

from ipaddress import ip_address

import pytest

from arc_server.http.proxies import TrustedProxies, client_key, parse_address

PROXIES = TrustedProxies(["10.0.0.0/8", "192.0.2.7", "2001:db8:1::/48"])
NEAREST = "10.0.0.1"


@pytest.mark.parametrize(
    ("peer", "expected"),
    [
        ("10.255.0.1", True),
        ("192.0.2.7", True),
        ("192.0.2.8", False),
        ("2001:db8:1::5", True),
        ("2001:db8:2::5", False),
        ("::ffff:10.0.0.1", True),
        ("127.0.0.1", False),
    ],
)
def test_a_proxy_is_one_of_the_listed_networks(peer: str, expected: bool) -> None:
    assert PROXIES.trust(parse_address(peer)) is expected


@pytest.mark.parametrize(("entries", "expected"), [([], False), (["unix"], True)])
def test_a_unix_socket_is_trusted_where_the_list_says_so(
    entries: list[str], expected: bool
) -> None:
    assert TrustedProxies(entries).trust(None) is expected


@pytest.mark.parametrize("entry", ["10.0.0.1/8", "proxy.example", "", "10.0.0.0/99", "Unix", "*"])
def test_an_entry_that_is_no_network_is_refused(entry: str) -> None:
    with pytest.raises(ValueError, match=r"expected 10\.0\.0\.0/8"):
        TrustedProxies(["10.0.0.0/8", entry])


@pytest.mark.parametrize(
    ("forwarded", "client"),
    [
        (["203.0.113.9"], "203.0.113.9"),
        (["198.51.100.1, 203.0.113.9"], "203.0.113.9"),  # the first is the client's own claim
        (["198.51.100.1", "203.0.113.9"], "203.0.113.9"),
        (["203.0.113.9, 192.0.2.7,10.1.1.1"], "203.0.113.9"),  # by three proxies
        (["10.9.9.9, 10.1.1.1"], "10.9.9.9"),  # from within
        (["203.0.113.9:4711"], "203.0.113.9"),
        (["[2001:db8::9]:4711"], "2001:db8::9"),
        (["::ffff:203.0.113.9"], "203.0.113.9"),
        ([], NEAREST),
        (["unknown"], NEAREST),
        (["203.0.113.9, unknown"], NEAREST),
        (["203.0.113.9, "], NEAREST),
    ],
)
def test_the_client_is_the_last_address_that_is_no_proxy(forwarded: list[str], client: str) -> None:
    assert PROXIES.client(ip_address(NEAREST), forwarded) == ip_address(client)


@pytest.mark.parametrize(
    ("address", "key"),
    [
        ("203.0.113.9", "203.0.113.9"),
        ("2001:db8::9", "2001:db8::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("nothing", ""),
    ],
)
def test_clients_are_told_apart_by_what_one_may_hold(address: str, key: str) -> None:
    assert client_key(parse_address(address)) == key
