"""The customer's CA has issued a certificate for the agent, and has revoked another."""

from pathlib import Path

from tests.support.certificates import Authority

place = Path("/etc/arc-agent")
authority = Authority(place)
authority.issue("agent")
authority.revoke(authority.issue("old")).rename(place / "revoked.crl")
