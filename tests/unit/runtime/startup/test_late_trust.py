"""Contexts that read the system's certificates at their first use."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
import sys
from pathlib import Path

import pytest

from arc_runtime.startup.late_trust import LateTrust, contexts_made_late
from tests.support.certificates import Authority

IMPORT = """
from arc_runtime.startup.late_trust import LateTrust, contexts_made_late
with contexts_made_late():
    import aiohttp.connector as connector
import ssl
late = connector._SSL_CONTEXT_VERIFIED
assert isinstance(late, LateTrust), late
assert late.verify_mode is ssl.CERT_REQUIRED and late.check_hostname
assert late.cert_store_stats()["x509_ca"] == 0
assert "set_default_verify_paths" not in vars(ssl.SSLContext)
"""


async def shake_hands(context: ssl.SSLContext, port: int) -> str:
    """A connection; the TLS version that was agreed on."""
    _, writer = await asyncio.open_connection("localhost", port, ssl=context)
    version = writer.get_extra_info("ssl_object").version()
    writer.close()
    await writer.wait_closed()
    return version


def test_aiohttp_is_imported_without_reading_a_certificate() -> None:
    done = subprocess.run(
        [sys.executable, "-c", IMPORT], capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr


def test_after_the_import_contexts_are_made_as_ever() -> None:
    with contexts_made_late():
        assert isinstance(ssl.create_default_context(), LateTrust)
        assert not isinstance(ssl.create_default_context(cafile=None), LateTrust)

    context = ssl.create_default_context()
    assert not isinstance(context, LateTrust)
    assert LateTrust().verify_flags == context.verify_flags


async def test_whom_the_system_trusts_is_trusted_and_nobody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, others = Authority(tmp_path / "ours"), Authority(tmp_path / "others")
    monkeypatch.setenv("SSL_CERT_FILE", str(ours.ca_file))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path / "none"))
    context = LateTrust()
    servers = [
        await asyncio.start_server(
            lambda _, writer: writer.close(),
            "127.0.0.1",
            0,
            ssl=authority.serving(authority.issue("localhost", ["localhost"])),
        )
        for authority in (ours, others)
    ]
    ports = [server.sockets[0].getsockname()[1] for server in servers]

    try:
        assert await shake_hands(context, ports[0]) == "TLSv1.3"
        with pytest.raises(ssl.SSLCertVerificationError):
            await shake_hands(context, ports[1])
    finally:
        for server in servers:
            server.close()
