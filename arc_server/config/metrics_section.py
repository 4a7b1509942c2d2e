"""The keys of section `metrics`, and the rules that concern both of them."""

from __future__ import annotations

from typing import Annotated

from arc_runtime.config.sections import Section, about


class ServerMetricsSection(Section, frozen=True, kw_only=True):
    """Health and figures for a monitoring system: docs/operating-a-server.md."""

    listen: Annotated[
        str | None,
        about(
            "The HOST:PORT, or unix:PATH, of GET /metrics, /healthz and /readyz. It is not the"
            " address that clients use. Default: none."
        ),
    ] = None
    public: Annotated[
        bool,
        about("Allow an address that other hosts reach. Requests need no credential."),
    ] = False
