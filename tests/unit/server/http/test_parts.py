"""The parts of the HTTP server that need no socket: routes, ranges, fields, base URLs."""

import pytest
from multidict import CIMultiDict, CIMultiDictProxy

from arc_protocol.errors import (
    ArcError,
    BadRequest,
    InvalidCommand,
    MethodNotAllowed,
    NotFound,
    RangeNotSatisfiable,
)
from arc_protocol.messages.base import State
from arc_server.http import fields
from arc_server.http.base_urls import BaseUrls, with_prefix
from arc_server.http.calls import Call
from arc_server.http.ranges import byte_range
from arc_server.http.routing import Route, Router, strict_path


async def no_handler(_: Call) -> None:
    """Stands for a handler; never called."""


def route(method: str, path: str) -> Route:
    return Route(method=method, path=path, handler=no_handler)  # pyright: ignore


ROUTES = [
    route("POST", "/commands"),
    route("GET", "/commands/*"),
    route("PUT", "/commands/*/response"),
    route("POST", "/commands/leases"),
    route("POST", "/commands/leases/renew"),
    route("POST", "/commands/leases/*/release"),
    route("GET", "/blobs/**"),
]
ROUTER = Router(ROUTES)
STRICT = Router(
    [
        *ROUTES,
        Route(method="GET", path="/healthz", handler=no_handler, is_versioned=False),  # pyright: ignore
    ],
    is_strict=True,
)


@pytest.mark.parametrize(
    ("method", "target", "path", "arguments"),
    [
        ("POST", "/commands", "/commands", []),
        ("POST", "/v1/commands", "/commands", []),
        ("POST", "/v1//commands/", "/commands", []),
        ("POST", "//v1//commands//leases//", "/commands/leases", []),
        ("GET", "/v1/commands/cmd_1", "/commands/*", ["cmd_1"]),
        ("HEAD", "/v1/commands/cmd_1", "/commands/*", ["cmd_1"]),
        ("GET", "/v1/commands/a%2Fb%20c", "/commands/*", ["a/b c"]),
        ("GET", "/v1/commands/..", "/commands/*", [".."]),
        ("PUT", "/commands/cmd_1/response?lease=x/y", "/commands/*/response", ["cmd_1"]),
        ("POST", "/commands/leases/renew", "/commands/leases/renew", []),
        ("POST", "/commands/leases/l1/release", "/commands/leases/*/release", ["l1"]),
        ("GET", "/v1/blobs/arc/commands/x/params?op=get", "/blobs/**", ["arc/commands/x/params"]),
    ],
)
def test_a_route_is_found_with_and_without_prefix_and_empty_segments(
    method: str, target: str, path: str, arguments: list[str]
) -> None:
    match = ROUTER.match(method, target)

    assert match.route.path == path
    assert match.arguments == arguments
    assert match.query == target.partition("?")[2]


@pytest.mark.parametrize(
    "target",
    ["/", "", "/v1", "/v2/commands", "/v1/v1/commands", "/commands/a/b/c", "/blobs", "/command"],
)
def test_an_unknown_path_is_not_found(target: str) -> None:
    with pytest.raises(NotFound):
        ROUTER.match("GET", target)


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("POST", "/v1/commands"),
        ("POST", "/v1/commands?a=/x//y"),
        ("HEAD", "/v1/commands/cmd_1"),
        ("GET", "/v1/commands/a%2Fb%20c~"),
        ("POST", "/v1/commands/leases/l1/release"),
        ("GET", "/v1/blobs/arc/commands/x/params?op=get"),
        ("GET", "/healthz"),
    ],
)
def test_a_strict_router_takes_the_one_spelling_that_clients_send(method: str, target: str) -> None:
    match = STRICT.match(method, target)

    assert strict_path(match.route, match.arguments) == target.partition("?")[0]


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("POST", "/commands"),
        ("POST", "/v1/commands/"),
        ("POST", "//v1/commands"),
        ("POST", "/v1//commands"),
        ("POST", "/v1/v1/commands"),
        ("POST", "/v1/COMMANDS"),
        ("POST", "/v1/%63ommands"),
        ("POST", "http://arc.example/v1/commands"),
        ("GET", "/v1/commands/%63md_1"),
        ("GET", "/v1/commands/a%2fb"),
        ("GET", "/v1/commands/a:b"),
        ("GET", "/v1/commands/.."),
        ("GET", "/v1/commands/%2e%2e"),
        ("GET", "/v1/blobs/arc%2Fcommands/x/params"),
        ("GET", "/v1/blobs/arc//commands/x/params"),
        ("GET", "/v1/blobs/arc/../x"),
        ("GET", "/v1/healthz"),
    ],
)
def test_a_strict_router_takes_no_other_spelling(method: str, target: str) -> None:
    with pytest.raises(NotFound):
        STRICT.match(method, target)


def test_a_known_path_names_the_methods_that_it_has() -> None:
    with pytest.raises(MethodNotAllowed) as refused:
        ROUTER.match("DELETE", "/v1/commands/cmd_1")

    assert refused.value.context["allow"] == "GET, HEAD"


def test_an_argument_that_is_not_utf8_is_refused() -> None:
    with pytest.raises(InvalidCommand) as refused:
        ROUTER.match("GET", "/v1/commands/%ff")

    assert refused.value.context["field"] == "path"


def test_two_routes_for_one_request_are_refused() -> None:
    with pytest.raises(ValueError, match="two routes for POST /commands"):
        Router([*ROUTES, route("POST", "/commands")])


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, None),
        ("bytes=0-0", (0, 1)),
        ("bytes=2-5", (2, 6)),
        ("bytes=2-", (2, 10)),
        ("BYTES=2-", (2, 10)),
        ("bytes=2-99", (2, 10)),
        ("bytes=-3", (7, 10)),
        ("bytes=-99", (0, 10)),
        ("bytes=5-2", None),
        ("bytes=-", None),
        ("bytes=a-b", None),
        ("bytes=0-1,3-4", None),
        ("lines=0-1", None),
        ("bytes=+1-2", None),
        (f"bytes=0-{'9' * 5000}", None),
    ],
)
def test_one_range_is_understood_and_everything_else_ignored(
    header: str | None, expected: tuple[int, int] | None
) -> None:
    assert byte_range(header, 10) == expected


@pytest.mark.parametrize(
    ("header", "size"), [("bytes=10-", 10), ("bytes=11-12", 10), ("bytes=-0", 10), ("bytes=0-", 0)]
)
def test_a_range_with_nothing_in_it_is_refused(header: str, size: int) -> None:
    with pytest.raises(RangeNotSatisfiable) as refused:
        byte_range(header, size)

    assert refused.value.context["size"] == size


@pytest.mark.parametrize(
    ("text", "seconds"), [(None, 0.0), ("0", 0.0), ("60", 60.0), ("1.5", 1.5), ("007", 7.0)]
)
def test_wait_seconds_are_a_number_up_to_60(text: str | None, seconds: float) -> None:
    assert fields.wait_seconds(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "61", "60.1", "-1", "nan", "inf", "1e1", "1_0", "٣", " 1", "9" * 400]
)
def test_other_wait_seconds_are_refused_by_name(text: str) -> None:
    with pytest.raises(InvalidCommand, match="waitSeconds") as refused:
        fields.wait_seconds(text)

    assert refused.value.context["field"] == "waitSeconds"


@pytest.mark.parametrize("text", ["", "-1", "1.0", "٣", "x", "9" * 19])
def test_a_number_that_is_none_is_refused_by_name(text: str) -> None:
    with pytest.raises(InvalidCommand, match="limit"):
        fields.integer("limit", text)


@pytest.mark.parametrize("text", ["", "x" * 257, "a\x00b", "a\nb", "\x7f", "\x85"])
def test_a_name_that_is_none_is_refused_by_name(text: str) -> None:
    with pytest.raises(InvalidCommand, match="deploymentId"):
        fields.optional_name("deploymentId", text)


def test_a_choice_names_what_there_is() -> None:
    assert fields.choice("state", "PENDING", State) is State.PENDING
    assert fields.choice("state", None, State) is None
    with pytest.raises(InvalidCommand, match="state: must be one of PENDING_UPLOAD, PENDING"):
        fields.choice("state", "pending", State)


def headers(**given: str) -> CIMultiDictProxy[str]:
    return CIMultiDictProxy(
        CIMultiDict({name.replace("_", "-"): value for name, value in given.items()})
    )


@pytest.mark.parametrize("host", ["arc.example", "127.0.0.1:8080", "[::1]:8080", "a_b-c.d"])
def test_urls_begin_with_where_the_request_went(host: str) -> None:
    urls = BaseUrls(None)

    for scheme in ("http", "https"):
        found = urls.of(headers(Host=host), scheme, is_forwarded=False)
        assert found == f"{scheme}://{host}/v1"


@pytest.mark.parametrize(
    "host", ["", "a b", "a/b", "user@host", "a:b", "a:123456", "x" * 300, "a\x00", "[::1", "é"]
)
def test_a_host_that_is_none_is_refused(host: str) -> None:
    with pytest.raises(BadRequest, match="Host"):
        BaseUrls(None).of(headers(Host=host), "http", is_forwarded=False)


def test_a_request_without_a_host_is_refused() -> None:
    with pytest.raises(BadRequest, match="Host"):
        BaseUrls(None).of(headers(), "http", is_forwarded=False)


def test_the_public_url_stands_for_every_host() -> None:
    given = headers(Host="evil", X_Forwarded_Host="worse")

    found = BaseUrls("https://arc.example/base/").of(given, "http", is_forwarded=True)

    assert found == "https://arc.example/base/v1"
    assert with_prefix("https://arc.example/v1/") == "https://arc.example/v1"


def test_forwarded_headers_count_only_where_they_are_trusted() -> None:
    given = headers(
        Host="inner:80", X_Forwarded_Host="outer.example, inner", X_Forwarded_Proto="https"
    )

    urls = BaseUrls(None)
    assert urls.of(given, "http", is_forwarded=False) == "http://inner:80/v1"
    assert urls.of(given, "http", is_forwarded=True) == "https://outer.example/v1"


@pytest.mark.parametrize(
    "given",
    [
        {"Host": "a", "X_Forwarded_Proto": "javascript"},
        {"Host": "a", "X_Forwarded_Host": "a/b"},
    ],
)
def test_forwarded_headers_are_judged_too(given: dict[str, str]) -> None:
    with pytest.raises(ArcError):
        BaseUrls(None).of(headers(**given), "http", is_forwarded=True)
