"""The load: senders, lease holders and readers that outlast every kill and note each answer."""

from __future__ import annotations

import asyncio
import base64
import itertools
import random
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import aiohttp

from tests.chaos.history import TERMINAL, History, Open, digest
from tests.chaos.killed_server import KilledServer
from tests.chaos.killed_wire import Json, Reply, Wire, inline

DEPLOYMENT = "site-1"
LARGE = 100
"""How often the text of a large body is repeated: it moves to blob storage then."""
MOST_LIVE = 40
"""Senders wait while there are more commands than this: what is old is to be seen again."""
PASSING = (408, 429)


class Load:
    """All clients of one server, and the history that they write together."""

    def __init__(self, server: KilledServer, session: aiohttp.ClientSession, source: random.Random):
        self.history = History()
        self.is_ending = asyncio.Event()
        """Nothing new is created, and holders take everything to its end."""
        self._victim = server
        self._wire = Wire(server, session)
        self._random = source
        self._live: dict[str, None] = {}
        self._ids: list[str] = []

    async def run(self, senders: int, holders: int, readers: int) -> None:
        """Run all clients at once, until everything has ended after `is_ending`."""
        async with asyncio.TaskGroup() as group:
            sending = [group.create_task(self._send(f"sender-{n}")) for n in range(senders)]
            others = [group.create_task(self._hold(f"holder-{n}")) for n in range(holders)]
            others += [group.create_task(self._read(f"reader-{n}")) for n in range(readers)]
            await asyncio.wait(sending)
            await self._until_all_have_ended()
            for task in others:
                task.cancel()

    async def more_events(self, count: int, seconds: float = 30) -> None:
        """Wait until that many more requests have been answered or broken."""
        wanted = len(self.history.events) + count
        async with asyncio.timeout(seconds):
            while len(self.history.events) < wanted:
                self._wire.progress.clear()
                await self._wire.progress.wait()

    async def look_at_everything(self) -> None:
        """Read all there is, at the end."""
        ids = await self._list("auditor")
        for command_id in ids:
            assert await self._status("auditor", command_id)
            assert await self._payload("auditor", command_id)

    # senders

    async def _send(self, who: str) -> None:
        for n in itertools.count():
            while len(self._live) > MOST_LIVE and not self.is_ending.is_set():
                await self._status(who, self._random.choice(list(self._live)), wait_seconds=1)
            if self.is_ending.is_set():
                return
            command_id = await self._create(who, f"{who}-{n}")
            if command_id is None:
                continue
            self._ids.append(command_id)
            if self._chance(0.1):
                await self._cancel(who, command_id)
            if self._chance(0.4):
                await self._status(who, command_id, wait_seconds=self._random.choice((0, 0.5)))

    async def _create(self, who: str, key: str) -> str | None:
        text = f"params of {key}. ".encode()
        is_upload = self._chance(0.3)
        data = text * (LARGE if self._chance(0.4) else 1)
        most = self._random.randint(2, 5)
        seconds = self._random.uniform(0.2, 2) if self._chance(0.1) else None
        body: Json = {
            "deploymentId": DEPLOYMENT,
            "command": "report",
            "params": {"mode": "storage", "size": len(data)} if is_upload else inline(data),
            "idempotencyKey": key,
            "maxAttempts": most,
        }
        deadline = None
        if seconds is not None:
            deadline = time.monotonic() + seconds
            body["deadline"] = (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()
        asked = {"key": key, "params": digest(data), "maxAttempts": most, "deadline": deadline}
        answer = await self._until_known(
            lambda: self.history.begin(who, "create", **asked),
            lambda: ("POST", "/commands", body),
            lambda got: {"id": got["commandId"], "state": got["state"]},
        )
        if answer is None:
            return None
        command_id = answer["commandId"]
        self._live[command_id] = None
        if answer["next"] == "upload":
            await self._wire.upload(answer["storageUpload"]["putRequest"], data)
            await self._until_known(
                lambda: self.history.begin(who, "upload_complete", id=command_id),
                lambda: ("POST", f"/commands/{command_id}/upload-complete", {"size": len(data)}),
                lambda _: {},
            )
        return command_id

    async def _cancel(self, who: str, command_id: str) -> None:
        await self._until_known(
            lambda: self.history.begin(who, "cancel", id=command_id),
            lambda: ("POST", f"/commands/{command_id}/cancel", None),
            lambda got: _state_of(got, None),
        )

    # readers

    async def _read(self, who: str) -> None:
        while True:
            await self._victim.is_up.wait()
            if not self._ids:
                await self._list(who)
                continue
            command_id = self._random.choice(self._ids)
            await self._status(who, command_id, wait_seconds=self._random.choice((0, 0.2)))
            if self._chance(0.2):
                await self._payload(who, self._random.choice(self._ids))
            if self._chance(0.05):
                await self._list(who)

    async def _status(self, who: str, command_id: str, wait_seconds: float = 0) -> bool:
        """One read; not noted when what it refers to could not be read as well."""
        event = self.history.begin(who, "status", id=command_id)
        reply = await self._wire.ask(
            "GET", f"/commands/{command_id}?waitSeconds={wait_seconds}", None
        )
        if reply is None or not self._is_good(event, reply):
            return False
        answer = reply[1]
        response = await self._wire.response(answer.get("response"))
        if response == ["unread"]:
            return False
        if answer["state"] in TERMINAL:
            self._live.pop(command_id, None)
        event.ok(**_state_of(answer, response))
        return True

    async def _payload(self, who: str, command_id: str) -> bool:
        event = self.history.begin(who, "payload", id=command_id)
        reply = await self._wire.ask("GET", f"/commands/{command_id}/payload", None)
        if reply is None:
            return False
        if reply[0] == 404 or "params" not in reply[1]:  # nothing uploaded yet
            return True
        found = await self._wire.digest(reply[1]["params"])
        if found is None:
            return False
        event.ok(params=found)
        return True

    async def _list(self, who: str) -> list[str]:
        event = self.history.begin(who, "list")
        ids: list[str] = []
        cursor = ""
        while True:
            reply = await self._wire.ask("GET", f"/commands?limit=1000{cursor}", None)
            if reply is None or not self._is_good(event, reply):
                return []
            ids += [each["commandId"] for each in reply[1]["commands"]]
            if "cursor" not in reply[1]:
                break
            cursor = f"&cursor={reply[1]['cursor']}"
        event.ok(ids=ids)
        return ids

    async def _until_all_have_ended(self, seconds: float = 60) -> None:
        async with asyncio.timeout(seconds):
            while True:
                reply = await self._wire.ask("GET", "/commands?limit=1000", None)
                if reply is not None and reply[0] == 200:
                    assert "cursor" not in reply[1], "more commands than a page holds"
                    states = {each["state"] for each in reply[1]["commands"]}
                    if states <= TERMINAL:
                        return
                    for each in reply[1]["commands"]:
                        if each["state"] == "PENDING_UPLOAD":  # its sender gave up
                            await self._cancel("janitor", each["commandId"])
                await asyncio.sleep(0.05)

    # holders

    async def _hold(self, who: str) -> None:
        while True:
            await self._victim.is_up.wait()
            for lease in await self._lease(who):
                await self._work(who, lease)

    async def _lease(self, who: str) -> list[Json]:
        seconds = self._random.choice((1, 1, 2, 3))
        event = self.history.begin(who, "lease", seconds=seconds)
        body = {
            "deploymentId": DEPLOYMENT,
            "maxLeases": self._random.choice((1, 1, 3)),
            "leaseSeconds": seconds,
            "waitSeconds": self._random.choice((0, 0.3)),
            "agentId": who,
        }
        reply = await self._wire.ask("POST", "/commands/leases", body)
        if reply is None or not self._is_good(event, reply):
            return []
        leases = reply[1]["leases"]
        event.ok(leases=[_granted(lease) for lease in leases])
        return leases

    async def _work(self, who: str, lease: Json) -> None:
        params = lease["envelope"]["params"]
        if params["mode"] == "storage":
            event = self.history.begin(who, "payload", id=lease["commandId"])
            found = await self._wire.digest(params)
            if found is not None:
                event.ok(params=found)
        doing = self._random.random()
        if self.is_ending.is_set():
            doing = min(doing, 0.7)
        if doing < 0.1:
            await self._renew(who, lease)
        if doing < 0.8:
            await self._respond(who, lease)
        elif doing < 0.87:
            await self._release(who, lease, is_drain=False)
        elif doing < 0.93:
            await self._release(who, lease, is_drain=True)
        # else it is left to lapse

    async def _renew(self, who: str, lease: Json) -> None:
        seconds = self._random.choice((1, 3))
        lease_id = lease["leaseId"]
        await self._until_known(
            lambda: self.history.begin(who, "renew", leases=[lease_id], seconds=seconds),
            lambda: (
                "POST",
                "/commands/leases/renew",
                {"leaseIds": [lease_id], "leaseSeconds": seconds},
            ),
            lambda got: {
                "renewed": [each["leaseId"] for each in got["renewed"]],
                "lost": got["lost"],
            },
        )

    async def _release(self, who: str, lease: Json, *, is_drain: bool) -> None:
        asked = {"lease": lease["leaseId"], "id": lease["commandId"], "drain": is_drain}
        await self._until_known(
            lambda: self.history.begin(who, "release", **asked),
            lambda: (
                "POST",
                f"/commands/leases/{lease['leaseId']}/release",
                {"reason": "drain"} if is_drain else None,
            ),
            lambda _: {},
        )

    async def _respond(self, who: str, lease: Json) -> None:
        handling = lease["envelope"]["responseHandling"]
        text = f"result of {lease['leaseId']} by {who}. ".encode()
        data = text * (LARGE if self._chance(0.3) else 1)
        how = self._random.choice(("inline", "inline", "stored", "error"))
        response: Json
        if how == "error":
            response = {"status": "error", "code": "HANDLER_ERROR", "message": text.decode()}
            kept = ["error", "HANDLER_ERROR", text.decode()]
        elif how == "inline":
            response = {"status": "success", "response": inline(data)}
            kept = ["success", digest(data)]
        else:
            if not await self._wire.upload(handling["storageUploadRequest"], data):
                return
            body = {"mode": "storage", "size": len(data), "storagePutUsed": True}
            response = {"status": "success", "response": body}
            kept = ["success", digest(data)]
        asked = {"lease": lease["leaseId"], "id": lease["commandId"]}
        url = handling["submitResponseUrl"]
        await self._until_known(
            lambda: self.history.begin(who, "respond", response=kept, **asked),
            lambda: ("PUT", url, response),
            lambda _: {},
        )
        if self._chance(0.1):  # another one, too late
            late = ["error", "TOO_LATE", text.decode()]
            response = {"status": "error", "code": late[1], "message": late[2]}
            await self._until_known(
                lambda: self.history.begin(who, "respond", response=late, **asked),
                lambda: ("PUT", url, response),
                lambda _: {},
            )

    # the wire

    async def _until_known(
        self,
        begin: Callable[[], Open],
        request: Callable[[], tuple[str, str, Any]],
        noted: Callable[[Any], Json],
    ) -> Any:
        """Ask until there is an answer, each time an event; None when it was refused."""
        while True:
            await self._victim.is_up.wait()
            event = begin()
            reply = await self._wire.ask(*request(), event=event)
            if reply is None:
                continue
            if self._is_good(event, reply):
                event.ok(**noted(reply[1]))
                return reply[1]
            if reply[0] < 500 and reply[0] not in PASSING:
                return None

    def _is_good(self, event: Open, reply: Reply) -> bool:
        """Return True for a 200; note any other answer."""
        status, answer = reply
        if status == 200:
            return True
        if status >= 500 or status in PASSING:
            event.unknown()
        else:
            event.fail(answer["code"])
        return False

    def _chance(self, probability: float) -> bool:
        return self._random.random() < probability


def _state_of(answer: Json, response: list[str] | None) -> Json:
    return {
        "state": answer["state"],
        "attempt": answer["attempt"],
        "response": response,
        "cancelRequested": answer.get("cancelRequested", False),
    }


def _granted(lease: Json) -> Json:
    """A lease as histories hold it; large params are read, and noted, later."""
    params = lease["envelope"]["params"]
    data = params.get("inlineBase64")
    return {
        "lease": lease["leaseId"],
        "id": lease["commandId"],
        "attempt": lease["attempt"],
        "params": None if data is None else digest(base64.b64decode(data, validate=True)),
    }
