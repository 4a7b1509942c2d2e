"""Handlers that call an HTTP service on this host or near it, by a request of the configuration.

The configuration fixes scheme, host, port, method, headers and the shape of path, query and body. A
param becomes a path segment, a value of the query or a value in a JSON body, encoded for its place.
Redirects are not followed, proxies are not used, cookies are not kept.
"""

from __future__ import annotations

import asyncio
import json
import re
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any, Final, cast
from urllib.parse import quote, urlencode, urlsplit

import aiohttp
import msgspec
from yarl import URL

from arc_agent.config.declared_handlers import HttpSection
from arc_agent.handlers.context import CommandFailed
from arc_agent.handlers.declared.placeholders import (
    INVALID_PARAMS,
    Params,
    as_text,
    check_bounded,
    check_scalar,
    declare,
)
from arc_agent.handlers.no_descriptors import put_off
from arc_agent.handlers.registry import UNTYPED, Handler, HandlerError
from arc_runtime.network.allowed_hosts import GuardedResolver, HostPolicy, HostRefused
from arc_runtime.network.encodings import unasked_encoding
from arc_runtime.network.system_errors import system_text

UPSTREAM_STATUS: Final = "UPSTREAM_STATUS"
UPSTREAM_UNREACHABLE: Final = "UPSTREAM_UNREACHABLE"
UPSTREAM_INVALID: Final = "UPSTREAM_INVALID"
_CHUNK_BYTES: Final = 64 * 1024
_EXCERPT_BYTES: Final = 2 * 1024
"""The part of an error answer that goes into the details of the command's error."""
_MAX_SECRET_BYTES: Final = 64 * 1024
_HEADER_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_OWN_HEADERS: Final = (
    "host",
    "connection",
    "content-length",
    "transfer-encoding",
    "te",
    "trailer",
    "upgrade",
    "expect",
    "accept-encoding",
)
"""Headers that decide where a message ends and who reads it: they cannot be configured."""
_PATH: Final = re.compile(r"(/[A-Za-z0-9._~!$&'()*+,;=:@%{}-]*)+")
_SAFE_METHODS: Final = ("GET", "HEAD")


def http_handler(name: str, section: HttpSection) -> Handler:
    """Return the handler of a section of `handlers.http`. Raises HandlerError."""
    key = f"handlers.http.{name}"
    params = declare(section.params, f"{key}.params")
    request = _Request(section, params, key)
    idempotent = section.method in _SAFE_METHODS
    if section.idempotent is not None:
        idempotent = section.idempotent

    async def run(params: Mapping[str, Any]) -> Any:
        if section.output == "bytes":
            return _streamed(section, request, params)
        return await _whole(section, request, params)

    return Handler(
        name=name,
        call=run,
        description=section.description,
        timeout_seconds=section.timeout_seconds,
        idempotent=idempotent,
        concurrency=section.concurrency,
        params_type=UNTYPED,
        params_name="params",
        read_params=params.read,
        params_schema=params.advertised,
        context_name=None,
        is_async=True,
        origin="handlers.http",
    )


class _Request:
    """The request of a section, to be filled with params."""

    def __init__(self, section: HttpSection, params: Params, key: str) -> None:
        """Raises HandlerError."""
        self._section = section
        self._params = params
        self._used: set[str] = set()
        self._base = _base(section.url, f"{key}.url")
        self.hosts: Final = HostPolicy(self._base, (), allows_public=False)
        """The service's host only, and never link-local or metadata addresses."""
        try:
            self.hosts.check(self._base)
        except HostRefused as error:
            raise HandlerError(f"{key}.url: {error}") from None
        self._path = self._path_of(section.path, f"{key}.path")
        self._query = {
            name: self._value_of(text, f"{key}.query.{name}")
            for name, text in section.query.items()
        }
        self._body = self._body_of(section.json, f"{key}.json")
        if section.json is not None and section.method in _SAFE_METHODS:
            raise HandlerError(f"{key}.json: {section.method} has no body")
        _check_headers(section, key)
        params.refuse_unused(self._used)

    def url(self, values: Mapping[str, Any]) -> URL:
        """Return the URL for these values. Raises CommandFailed INVALID_PARAMS."""
        text = self._base + "".join(make(values) for make in self._path)
        if self._query:
            text += "?" + urlencode([(name, make(values)) for name, make in self._query.items()])
        return URL(text, encoded=True)

    def body(self, values: Mapping[str, Any]) -> bytes | None:
        """Return the JSON body for these values; None for no body."""
        if self._section.json is None:
            return None
        return json.dumps(self._body(values), separators=(",", ":")).encode("ascii")

    def headers(self) -> tuple[dict[str, str], list[str]]:
        """Return the headers, and the secret values among them. Blocks. Raises CommandFailed."""
        headers = {"Accept-Encoding": "identity", "User-Agent": "arc-agent"}
        if self._section.json is not None:
            headers["Content-Type"] = "application/json"
        given = dict(self._section.headers)
        secrets = [_secret(file) for file in self._section.header_files.values()]
        given.update(zip(self._section.header_files, secrets, strict=True))
        known = {name.lower(): name for name in headers}
        for name, value in given.items():
            headers.pop(known.get(name.lower(), ""), None)
            headers[name] = value
        return headers, secrets

    def _path_of(self, path: str, key: str) -> list[Callable[[Mapping[str, Any]], str]]:
        """Return the makers of the path's segments. Raises HandlerError."""
        if not _PATH.fullmatch(path):
            raise HandlerError(f"{key}: must be an absolute path, percent-encoded, without a query")
        return [self._segment_of(text, key) for text in path.split("/")[1:]]

    def _segment_of(self, text: str, key: str) -> Callable[[Mapping[str, Any]], str]:
        """Return the maker of a segment with its slash. Raises HandlerError."""
        param = self._params.placeholder(text, key)
        if param is None:
            if text in (".", "..") or "{" in text or "}" in text:
                raise HandlerError(f"{key}: the segment {text!r} cannot stand there")
            return lambda _: f"/{text}"
        check_scalar(param)
        self._used.add(param.name)
        name = param.name

        def segment(values: Mapping[str, Any]) -> str:
            value = as_text(values[name])
            if value in ("", ".", ".."):
                raise CommandFailed(INVALID_PARAMS, f"params.{name}: is no segment of a path")
            return "/" + _quoted(value, name)

        return segment

    def _value_of(self, text: str, key: str) -> Callable[[Mapping[str, Any]], str]:
        """Return the maker of a value of the query. Raises HandlerError."""
        param = self._params.placeholder(text, key)
        if param is None:
            return lambda _: text
        check_scalar(param)
        self._used.add(param.name)
        name = param.name
        return lambda values: _encodable(as_text(values[name]), name)

    def _body_of(self, given: Any, key: str) -> Callable[[Mapping[str, Any]], Any]:
        """Return the maker of a part of the body. Raises HandlerError."""
        if isinstance(given, str):
            param = self._params.placeholder(given, key)
            if param is None:
                return lambda _: given
            check_bounded(param)
            self._used.add(param.name)
            name = param.name
            return lambda values: values[name]
        if isinstance(given, dict):
            fields = {
                name: self._body_of(inner, f"{key}.{name}")
                for name, inner in cast("dict[str, Any]", given).items()
            }
            return lambda values: {name: make(values) for name, make in fields.items()}
        if isinstance(given, list):
            items = [
                self._body_of(inner, f"{key}[{index}]")
                for index, inner in enumerate(cast("list[Any]", given))
            ]
            return lambda values: [make(values) for make in items]
        if given is not None and not isinstance(given, bool | int | float):
            raise HandlerError(f"{key}: not a JSON value: dates need quotes")
        return lambda _: given


async def _whole(section: HttpSection, request: _Request, values: Mapping[str, Any]) -> Any:
    """Return the whole answer as JSON or text. Raises CommandFailed."""
    data = b"".join([chunk async for chunk in _streamed(section, request, values)])
    if section.output == "text":
        return data.decode("utf-8", "replace")
    data = data.strip()
    return await asyncio.to_thread(_json, data) if data else None


def _json(data: bytes) -> Any:
    """Return JSON that a 1.x sender reads too: it takes bytes for Latin-1. Raises CommandFailed."""
    try:
        msgspec.json.decode(data, type=msgspec.Raw)  # validates without building objects
        return data if data.isascii() else json.loads(data)
    except (ValueError, msgspec.MsgspecError, RecursionError):
        raise CommandFailed(UPSTREAM_INVALID, "the answer of the service is not JSON") from None


async def _streamed(
    section: HttpSection, request: _Request, values: Mapping[str, Any]
) -> AsyncIterator[bytes]:
    """Send the request and yield the answer's body. Raises CommandFailed unless it is a 2xx."""
    url, body = request.url(values), request.body(values)
    headers, secrets = await asyncio.to_thread(request.headers)
    tls = await asyncio.to_thread(_tls, section) if url.scheme == "https" else True
    size = 0
    try:
        async with (
            aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    ssl=tls, force_close=True, resolver=GuardedResolver(request.hosts)
                ),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=None),  # the run's own time limit bounds it
                auto_decompress=False,
                trust_env=False,
            ) as session,
            session.request(
                section.method, url, data=body, headers=headers, allow_redirects=False
            ) as answer,
        ):
            if not 200 <= answer.status < 300:
                excerpt = await _excerpt(answer, secrets)
                more = " (redirects are not followed)" if 300 <= answer.status < 400 else ""
                raise CommandFailed(
                    UPSTREAM_STATUS, f"the service answered {answer.status}{more}", excerpt
                )
            if unasked_encoding(answer.headers):
                raise CommandFailed(UPSTREAM_INVALID, "the service answered compressed, unasked")
            async for chunk in answer.content.iter_chunked(_CHUNK_BYTES):
                size += len(chunk)
                if size > section.max_response_bytes:
                    raise CommandFailed(
                        UPSTREAM_INVALID,
                        f"the answer is larger than {section.max_response_bytes} bytes",
                    )
                yield chunk
    except HostRefused as error:
        raise CommandFailed(UPSTREAM_UNREACHABLE, str(error)) from None
    except aiohttp.ClientConnectorError as error:
        reason = system_text(error.os_error)
        raise put_off(error, "http") or CommandFailed(
            UPSTREAM_UNREACHABLE, f"the service cannot be reached: {reason}"
        ) from None
    except aiohttp.ClientPayloadError:
        raise CommandFailed(UPSTREAM_INVALID, "the answer of the service broke off") from None
    except (aiohttp.ClientError, OSError) as error:
        raise put_off(error, "http") or CommandFailed(
            UPSTREAM_UNREACHABLE, f"the service did not answer: {type(error).__name__}"
        ) from None


async def _excerpt(answer: aiohttp.ClientResponse, secrets: list[str]) -> str | None:
    """Return the beginning of a body without secrets; None for an empty one."""
    data = b""
    try:
        async for chunk in answer.content.iter_chunked(_EXCERPT_BYTES):
            data += chunk
            if len(data) > _EXCERPT_BYTES + _MAX_SECRET_BYTES:
                break
    except aiohttp.ClientError:
        pass
    text = data.decode("utf-8", "replace")
    for secret in secrets:
        for part in {secret, secret.rpartition(" ")[2]}:
            text = text.replace(part, "***")
    return text[:_EXCERPT_BYTES].strip() or None


def _tls(section: HttpSection) -> ssl.SSLContext:
    """Return a context with the trusted certificates. Blocks. Raises CommandFailed."""
    context = ssl.create_default_context()
    if section.ca_file is not None:
        try:
            context.load_verify_locations(section.ca_file.expanduser())
        except OSError as error:
            raise put_off(error, "http") or CommandFailed(
                UPSTREAM_UNREACHABLE, "ca_file cannot be read"
            ) from None
    return context


def _secret(file: Path) -> str:
    """Return a header's value from a file. Raises CommandFailed, which never quotes it."""
    try:
        with file.expanduser().open("rb") as opened:
            data = opened.read(_MAX_SECRET_BYTES + 1)
        value = data.decode("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise put_off(error, "http") or CommandFailed(
            "HANDLER_ERROR", "a file of header_files cannot be read"
        ) from None
    if not value or len(data) > _MAX_SECRET_BYTES or not value.isprintable():
        raise CommandFailed("HANDLER_ERROR", "a file of header_files holds no header")
    return value


# Checks of the configuration


def _base(url: str, key: str) -> str:
    """Return the service's URL without slashes at its end. Raises HandlerError."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise HandlerError(f"{key}: cannot be read") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise HandlerError(f"{key}: must be an http(s) URL such as http://127.0.0.1:8080")
    if "@" in parts.netloc:
        raise HandlerError(f"{key}: a user or password does not belong there: see header_files")
    if parts.query or parts.fragment or "{" in url or "?" in url or "#" in url:
        raise HandlerError(f"{key}: a fixed URL without a query")
    path = parts.path.rstrip("/")
    if path and (not _PATH.fullmatch(path) or {".", ".."} & set(path.split("/"))):
        raise HandlerError(f"{key}: its path cannot be read")
    return f"{parts.scheme}://{parts.netloc}{path}"


def _check_headers(section: HttpSection, key: str) -> None:
    """Raise HandlerError for a header that cannot or must not be sent."""
    seen: set[str] = set()
    for table, names in (("headers", section.headers), ("header_files", section.header_files)):
        for name in names:
            where = f"{key}.{table}.{name}"
            if not _HEADER_NAME.fullmatch(name):
                raise HandlerError(f"{where}: not the name of a header")
            if name.lower() in _OWN_HEADERS:
                raise HandlerError(f"{where}: this header is the agent's own")
            if name.lower() in seen:
                raise HandlerError(f"{where}: stands there twice")
            seen.add(name.lower())
    for name, value in section.headers.items():
        if not (value.isascii() and value.isprintable()):
            raise HandlerError(f"{key}.headers.{name}: a value is of printable ASCII characters")
        if "{params." in value:
            raise HandlerError(f"{key}.headers.{name}: headers are fixed")


def _encodable(value: str, name: str) -> str:
    """Return text that UTF-8 can encode. Raises CommandFailed for other text."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise CommandFailed(INVALID_PARAMS, f"params.{name}: is no Unicode text") from None
    return value


def _quoted(value: str, name: str) -> str:
    """Return a segment of a path, percent-encoded. Raises CommandFailed."""
    return quote(_encodable(value, name), safe="")
