import pytest

from arc_protocol.errors import InvalidEnvelope
from arc_protocol.urls import origin, redact, resolve, same_origin

LEASES = "https://edge.example/t/v1/commands/leases"


@pytest.mark.parametrize(
    ("reference", "url"),
    [
        ("cmd_a/response?x=1", "https://edge.example/t/v1/commands/cmd_a/response?x=1"),
        (
            "cmd_1/response?response_token=9f%2F&expires=17&lease=a%20b",
            "https://edge.example/t/v1/commands/cmd_1/response?response_token=9f%2F&expires=17&lease=a%20b",
        ),
        ("../s/o", "https://edge.example/t/v1/s/o"),
        ("../storage/obj?sig=a/../b", "https://edge.example/t/v1/storage/obj?sig=a/../b"),
        ("/blobs/x", "https://edge.example/blobs/x"),
        ("./x", "https://edge.example/t/v1/commands/x"),
        ("../../../../x", "https://edge.example/x"),
        ("?q=1", "https://edge.example/t/v1/commands/leases?q=1"),
    ],
)
def test_a_relative_reference_is_joined_to_the_lease_endpoint(reference: str, url: str) -> None:
    assert resolve(LEASES, reference) == url


@pytest.mark.parametrize(
    "url",
    [
        "https://bucket.s3.amazonaws.com/o?X-Amz-Signature=a%2fb+c&x=&y",
        "http://127.0.0.1:8080/v1/commands/cmd_1/response?response_token=t",
        "http://[::1]:8080/x",
        "HTTPS://Edge.Example/a/../b/./c//d",
        "https://edge.example:443/%7Euser",
        "https://h?query",
        "https://h/päth",
    ],
)
def test_an_absolute_url_is_used_byte_for_byte(url: str) -> None:
    assert resolve(LEASES, url) == url


@pytest.mark.parametrize(
    ("lease_url", "reference", "url"),
    [
        (LEASES, "http://edge.example/t/v1/c?x=http://y", "https://edge.example/t/v1/c?x=http://y"),
        ("https://h:8443/v1/l", "http://h:8443/v1/c", "https://h:8443/v1/c"),
        ("https://h:8443/v1/l", "http://h/v1/c", "http://h/v1/c"),
        ("http://h/v1/l", "http://h/v1/c", "http://h/v1/c"),
        ("http://h/v1/l", "https://h/v1/c", "https://h/v1/c"),
        (LEASES, "http://bucket.example/o?sig=x", "http://bucket.example/o?sig=x"),
    ],
)
def test_plain_http_where_the_lease_came_by_tls_becomes_tls(
    lease_url: str, reference: str, url: str
) -> None:
    assert resolve(lease_url, reference) == url


@pytest.mark.parametrize(
    "reference",
    [
        *("//evil.example/x", "//evil.example", "///evil.example/x", "//"),
        *("\n//evil.example/x", " //evil.example/x", "\x00//evil.example", "/\t/evil.example/x"),
        *("/\n/evil.example", "\\\\evil.example\\x", "/\\evil.example/x", "\x1f//evil.example/x"),
        *("http:/x", "http:x", "https:cmd_1", "http:///x", "https:////x", "http://:80/"),
        *("ftp://h/x", "file:///etc/passwd", "javascript:alert(1)", "data:,x", "cmd:1/response"),
        *("https://h:99999/", "https://h:0/", "https://h:8o/", "http://[::1", "http://h]/"),
        *("http://h /x", "http://h/a b", "http://h\\@evil/", "http://h\r\nX: y/", "http://h/\x7f"),
        *("", " ", "http://\u2100evil/"),
    ],
)
def test_a_reference_that_could_leave_for_another_place_is_refused(reference: str) -> None:
    with pytest.raises(InvalidEnvelope, match=r"^url: "):
        resolve(LEASES, reference)


def test_a_refusal_does_not_repeat_the_secrets_of_the_url() -> None:
    with pytest.raises(InvalidEnvelope) as raised:
        resolve(LEASES, "ftp://user:pw@h/x?sig=s3cret")

    assert raised.value.context == {"url": "ftp://***@h/x?sig=***"}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("https://h/a", "https://h/b?x"),
        ("https://h", "https://H:443/"),
        ("http://h:80", "http://h/"),
        ("http://[::1]:1/", "http://[::1]:1/x"),
        ("https://user@h/", "https://h/"),
    ],
)
def test_the_same_origin_is_known_by_scheme_host_and_port(one: str, other: str) -> None:
    assert same_origin(one, other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("https://h/", "http://h/"),
        ("https://h/", "https://h:444/"),
        ("http://h/", "http://h:0/"),
        ("https://h/", "https://sub.h/"),
        ("https://h/", "https://h.evil/"),
        ("https://h/", "https://h@evil/"),
        ("https://h/", "//h/"),
        ("https://h/", "/"),
        ("ftp://h/", "ftp://h/"),
        ("", ""),
        ("http://[", "http://["),
    ],
)
def test_a_token_for_one_place_is_not_for_another(one: str, other: str) -> None:
    assert not same_origin(one, other)


def test_an_origin_has_its_port_filled_in() -> None:
    assert origin("https://H/x") == ("https", "h", 443)
    assert origin("http://h:8080/x") == ("http", "h", 8080)
    with pytest.raises(ValueError, match="not an http"):
        origin("ftp://h")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://h/p", "https://h/p"),
        ("https://h/p?response_token=abc&expires=17", "https://h/p?response_token=***&expires=***"),
        ("https://h/p?a=1&b&=x&c=#frag", "https://h/p?a=***&***&=***&c=***#***"),
        ("https://h/p?s3cret", "https://h/p?***"),
        ("https://h/p?%41=1&a=2&a=3", "https://h/p?%41=***&a=***&a=***"),
        ("https://h/p?a=1;b=2", "https://h/p?a=***"),
        ("https://h/p?" + "n" * 65 + "=1", "https://h/p?***"),
        ("https://u:p@h:1/p", "https://***@h:1/p"),
        ("http://u@h", "http://***@h"),
        ("http://a@b@c/", "http://***@c/"),
        ("//u:p@h/x", "//***@h/x"),
        ("cmd_1/response?response_token=abc", "cmd_1/response?response_token=***"),
        ("http://[::1", "(a URL that cannot be parsed)"),
        ("", ""),
    ],
)
def test_a_url_is_shown_without_its_secrets(url: str, shown: str) -> None:
    assert redact(url) == shown
