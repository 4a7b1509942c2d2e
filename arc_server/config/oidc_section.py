"""The keys of section `oidc`, the rules that concern more than one of them, and what they make."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Annotated, Final, Literal

import msgspec

from arc_runtime.config.sections import Section, about
from arc_runtime.config.settings import SettingsError
from arc_server.auth.oidc import OidcProvider, OidcRule
from arc_server.auth.oidc_keys import OidcLimits, is_safe_url
from arc_server.auth.tokens import Scope
from arc_server.ports.reach import ANY

DAY_SECONDS: Final = 86_400
MODULES: Final = ("jwt", "cryptography")
"""Modules that the extra `oidc` installs."""
DEFAULT_ALGORITHMS: Final = ("RS256", "ES256")
"""Those of nearly all providers."""
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,31}", re.ASCII)

Algorithm = Literal[
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"
]
Pattern = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]


class OidcRuleEntry(Section, frozen=True, kw_only=True):
    """A rule for the tokens of a provider."""

    claims: Annotated[
        dict[str, str | int | bool | list[str]],
        about(
            "By the name of a claim the value that it must have, or a list of which one fits. `*`"
            " in a text stands for any characters. Of a claim that is a list one item has to fit;"
            " `a.b` is the claim `b` inside `a`. All claims of a rule have to fit.",
            min_length=1,
        ),
    ]
    scope: Annotated[
        Literal["admin", "operator", "sender", "viewer"],
        about("The rights of a caller that the rule fits."),
    ]
    deployments: Annotated[
        list[Pattern] | None,
        about(
            "Patterns of the deployments that the caller is bound to, `*` for all. Not for admins."
        ),
    ] = None
    commands: Annotated[
        list[Pattern] | None,
        about("Patterns of the command names that the caller is bound to. By default all."),
    ] = None


class OidcProviderEntry(Section, frozen=True, kw_only=True):
    """A provider whose tokens are taken."""

    name: Annotated[
        str,
        about("A short name, for `createdBy` and logs: lower case letters, digits, hyphens."),
    ]
    issuer: Annotated[
        str, about("The issuer, exactly as it stands in the tokens (`iss`). An https URL.")
    ]
    audience: Annotated[
        list[Pattern],
        about("The audience that tokens must be made for: one of these.", min_length=1),
    ]
    rules: Annotated[
        list[OidcRuleEntry],
        about("Who may do what. The first rule that fits a token counts.", min_length=1),
    ]
    algorithms: Annotated[
        list[Algorithm] | None,
        about("The signatures that are taken. By default RS256 and ES256."),
    ] = None
    jwks_url: Annotated[
        str | None,
        about("The URL of the provider's keys. By default the one that its discovery names."),
    ] = None
    subject_claim: Annotated[
        Pattern, about("The claim that names the caller in `createdBy`. Make sure it is unique.")
    ] = "sub"


class OidcSection(Section, frozen=True, kw_only=True):
    """Bearer tokens of OpenID Connect providers, for people and CI. Needs the extra `oidc`."""

    providers: Annotated[
        list[OidcProviderEntry], about("Providers whose tokens are taken. Without any: none.")
    ] = []
    leeway_seconds: Annotated[
        float,
        about("How far the clock of a provider may be from the server's.", ge=0, le=300),
    ] = 30.0
    max_life_seconds: Annotated[
        float,
        about(
            "The longest life that is left to a token when it is used. A longer one is refused:"
            " these tokens cannot be revoked.",
            ge=60,
            le=31 * DAY_SECONDS,
        ),
    ] = float(DAY_SECONDS)
    refresh_seconds: Annotated[
        float,
        about(
            "How long the keys of a provider are used before they are fetched again. A key that"
            " the provider withdraws is good for this long.",
            ge=60,
            le=DAY_SECONDS,
        ),
    ] = 3600.0
    keep_seconds: Annotated[
        float,
        about(
            "How long known keys stay good while the provider does not answer.",
            ge=60,
            le=31 * DAY_SECONDS,
        ),
    ] = float(DAY_SECONDS)
    refetch_seconds: Annotated[
        float,
        about("The shortest pause between two requests to one provider.", ge=1, le=3600),
    ] = 30.0
    timeout_seconds: Annotated[
        float, about("How long a provider may take to answer.", gt=0, le=60)
    ] = 5.0
    max_answer_bytes: Annotated[
        int, about("The largest answer of a provider that is read.", ge=1024, le=16 << 20)
    ] = 256 << 10


def check_oidc(section: OidcSection) -> None:
    """Raise SettingsError, naming the key, for providers that cannot be used."""
    if section.providers and any(find_spec(name) is None for name in MODULES):
        raise _bad("providers", "needs the extra oidc: pip install 'arc-commands[oidc]'")
    if section.keep_seconds < section.refresh_seconds:
        raise _bad("keep_seconds", "is below oidc.refresh_seconds")
    for index, entry in enumerate(section.providers):
        key = f"providers[{index}]"
        if _NAME.fullmatch(entry.name) is None:
            raise _bad(f"{key}.name", "must be 1 to 32 lower case letters, digits and hyphens")
        others = section.providers[:index]
        if any(other.name == entry.name for other in others):
            raise _bad(f"{key}.name", "two providers have this name")
        if any(other.issuer == entry.issuer for other in others):
            raise _bad(f"{key}.issuer", "two providers have this issuer")
        for name, url in (("issuer", entry.issuer), ("jwks_url", entry.jwks_url)):
            if url is not None and not is_safe_url(url):
                raise _bad(f"{key}.{name}", "must be an https URL (http: on this machine only)")
        for number, rule in enumerate(entry.rules):
            _check_rule(f"{key}.rules[{number}]", rule)


def oidc_providers(section: OidcSection) -> Sequence[OidcProvider]:
    """Return the providers of a configuration."""
    return [
        OidcProvider(
            name=entry.name,
            issuer=entry.issuer,
            audience=entry.audience,
            algorithms=entry.algorithms or DEFAULT_ALGORITHMS,
            jwks_url=entry.jwks_url,
            subject_claim=entry.subject_claim,
            rules=[
                OidcRule(
                    claims={name: _texts(value) for name, value in rule.claims.items()},
                    scope=Scope(rule.scope),
                    deployments=ANY if rule.deployments is None else tuple(rule.deployments),
                    commands=ANY if rule.commands is None else tuple(rule.commands),
                )
                for rule in entry.rules
            ],
        )
        for entry in section.providers
    ]


def oidc_limits(section: OidcSection) -> OidcLimits:
    """Return the limits of OIDC."""
    return OidcLimits(
        leeway_seconds=section.leeway_seconds,
        max_life_seconds=section.max_life_seconds,
        refresh_seconds=section.refresh_seconds,
        keep_seconds=section.keep_seconds,
        refetch_seconds=section.refetch_seconds,
        timeout_seconds=section.timeout_seconds,
        max_answer_bytes=section.max_answer_bytes,
    )


def _check_rule(key: str, rule: OidcRuleEntry) -> None:
    if rule.scope == Scope.ADMIN:
        for name, value in (("deployments", rule.deployments), ("commands", rule.commands)):
            if value is not None:
                raise _bad(f"{key}.{name}", "an admin is bound to nothing; leave it out")
    elif not rule.deployments:
        raise _bad(f"{key}.deployments", "is needed: patterns of deployments, or '*' for all")
    if rule.commands == []:
        raise _bad(f"{key}.commands", "is empty: no command would fit")
    for name, value in rule.claims.items():
        if value in ("", []):
            raise _bad(f"{key}.claims.{name}", "is empty: no token would fit")


def _texts(value: str | int | bool | list[str]) -> Sequence[str]:
    if isinstance(value, bool):
        return ["true" if value else "false"]
    return value if isinstance(value, list) else [str(value)]


def _bad(key: str, message: str) -> SettingsError:
    return SettingsError(message, key=f"oidc.{key}", source=None)
