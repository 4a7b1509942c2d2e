"""The services of one server process, and the parts that they share."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from arc_server.ports.blobs import BlobStore
from arc_server.ports.clock import Clock
from arc_server.ports.links import Links
from arc_server.ports.records import FIRST_EPOCH, Epoch
from arc_server.ports.store import Store
from arc_server.service.agents import AgentService
from arc_server.service.announcements import Announcements
from arc_server.service.attempts import AttemptService
from arc_server.service.commands import CommandService
from arc_server.service.cursors import Cursors
from arc_server.service.envelopes import Envelopes
from arc_server.service.events import EventService
from arc_server.service.incoming_bodies import IncomingBodies
from arc_server.service.leases import LeaseService
from arc_server.service.limits import CommandLimits
from arc_server.service.lookup import Lookup
from arc_server.service.outgoing_bodies import OutgoingBodies
from arc_server.service.searching import SearchService
from arc_server.service.uploads import Uploads
from arc_server.service.waiting import WaitingReasons


class ServerServices(msgspec.Struct, frozen=True, kw_only=True):
    """The services, built on one set of ports."""

    announcements: Announcements
    envelopes: Envelopes
    commands: CommandService
    search: SearchService
    attempts: AttemptService
    leases: LeaseService
    events: EventService
    agents: AgentService
    uploads: Uploads


def build_services(
    *,
    store: Store,
    blobs: BlobStore,
    links: Links,
    clock: Clock,
    limits: CommandLimits,
    epoch: Epoch = FIRST_EPOCH,
    check_room: Callable[[int], None] = lambda _: None,
) -> ServerServices:
    """Return the services of a process."""
    announcements = Announcements()
    lookup = Lookup(store, clock, announcements)
    incoming = IncomingBodies(blobs, limits, check_room)
    outgoing = OutgoingBodies(blobs, clock, limits)
    envelopes = Envelopes(outgoing, links, clock, limits)
    results = announcements.results
    agents = AgentService(
        store=store, clock=clock, limits=limits, on_change=results.wake_for_reasons_in
    )
    reasons = WaitingReasons(agents=agents, clock=clock, results=results)
    return ServerServices(
        announcements=announcements,
        envelopes=envelopes,
        commands=CommandService(
            store=store,
            lookup=lookup,
            incoming=incoming,
            outgoing=outgoing,
            clock=clock,
            announcements=announcements,
            reasons=reasons,
            limits=limits,
        ),
        search=SearchService(store=store, cursors=Cursors(links), limits=limits),
        attempts=AttemptService(store=store, lookup=lookup),
        leases=LeaseService(
            store=store,
            lookup=lookup,
            incoming=incoming,
            envelopes=envelopes,
            clock=clock,
            announcements=announcements,
            limits=limits,
            agents=agents,
            epoch=epoch,
            reasons=reasons,
        ),
        events=EventService(store=store, clock=clock, announcements=announcements, limits=limits),
        agents=agents,
        uploads=Uploads(store, epoch, limits.quotas),
    )
