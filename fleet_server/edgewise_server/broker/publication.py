"""Keeps what a managed Mosquitto reads up to date: authorities, certificates, revocation list.

Level-triggered: each look compares the folder with what the database says, writes what differs, and tells the broker.
A revocation is finished when the broker has read the list and the device's open connection has been ended; until then
every look tries again. The list that was finished last lies beside, as `crl.done.pem`.
"""

from __future__ import annotations

import fcntl
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Final

from sqlmodel import col, select

from edgewise_server.broker.credentials import serials, why_due
from edgewise_server.broker.eviction import LIFE_DAYS, EvictionError, evict
from edgewise_server.broker.mosquitto import BROKER_FILE, CA_FILE, CRL_FILE, PID_FILE, SERVER_FILE, SERVER_USER
from edgewise_server.broker.reload import reload_mosquitto
from edgewise_server.db import Database
from edgewise_server.files import write_atomic
from edgewise_server.models.devices import Device, RevokedCertificate
from edgewise_server.models.trust import FleetCa
from edgewise_server.pki.authority import Authority, load_certificate
from edgewise_server.settings import Settings

logger = logging.getLogger(__name__)

DONE_FILE: Final = "crl.done.pem"
EVICT_FILE: Final = "evict.next"
"""There while all connections that a replaced intermediate let in are ended; holds the id of the last device."""
SETTLED_FILE: Final = "crl.settled.pem"
"""The list that was finished last, once no connection can be left that was opened before the broker had read it."""
LOCK_FILE: Final = "lock"
EVICT_S: Final = 20.0
"""How long one look ends connections; the next look goes on."""
SETTLED_S: Final = 30.0
"""A broker that is told by other means than ours has read a revocation list after this long."""
SPARE_S: Final = 180.0
"""Mosquitto gives a connection up that says nothing for 90 s; through the WebSocket gateway it is 130 s at most."""
_MAX_BYTES: Final = 64 << 20
_LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")
_looking = threading.Lock()


class BrokerFiles:
    """The folder that Mosquitto reads. Several processes may look: a lock in the folder lets one at a time."""

    def __init__(self, settings: Settings, database: Database, authority: Authority) -> None:
        self._settings = settings
        self._database = database
        self._authority = authority
        self._folder = settings.broker_files

    def look(self, now: datetime, *, thorough: bool = False) -> list[str]:
        """Write what is due, and tell the broker; returns what was done. Does nothing before the ceremony.

        Args:
            thorough: after the intermediate was replaced, end the open connections of all devices too, since the
                stolen one may have let anybody in; devices come back with certificates of the new one.
        """
        with self._database.session(read_only=True) as session:
            found = session.get(FleetCa, 1)
            ca = None if found is None else FleetCa.model_validate(found.model_dump())
        if ca is None or not ca.crl_pem:
            return []
        with self._alone():
            done = self._certificates(ca, now)
            if self._differs(CRL_FILE, ca.crl_pem.encode()):
                write_atomic(self._folder / CRL_FILE, ca.crl_pem.encode())
                done.append("the revocation list")
            told = self._tell(done)
            if not self._finish(ca, now, told):
                self._settle(ca, now)
            if thorough:
                self._evict_all(ca, now)
        return done

    def _certificates(self, ca: FleetCa, now: datetime) -> list[str]:
        done = []
        authorities = (ca.root_pem.strip() + "\n" + ca.intermediate_pem.strip() + "\n").encode()
        if self._differs(CA_FILE, authorities):
            if self._read(CA_FILE) is not None:
                write_atomic(self._folder / EVICT_FILE, b"")
            write_atomic(self._folder / CA_FILE, authorities)
            done.append("the authorities")
        intermediate, days = load_certificate(ca.intermediate_pem), self._settings.broker_certificate_days
        hosts = broker_hosts(self._settings)
        why = why_due(self._read(BROKER_FILE), intermediate, now, hosts=hosts)
        if why:
            made = self._authority.issue_server(ca.intermediate_pem, hosts=hosts, now=now, days=days)
            write_atomic(self._folder / BROKER_FILE, made.bundle, 0o600)
            done.append(f"the broker's certificate ({why})")
        why = why_due(self._read(SERVER_FILE), intermediate, now, name=SERVER_USER)
        if why:
            made = self._authority.issue_client(ca.intermediate_pem, name=SERVER_USER, now=now, days=days)
            write_atomic(self._folder / SERVER_FILE, made.bundle, 0o600)
            done.append(f"the server's certificate ({why})")
        return done

    def _tell(self, done: list[str]) -> bool:
        """Have the broker read the files again, if they changed or an earlier look could not; whether it did."""
        if not done and self._read(DONE_FILE) == self._read(CRL_FILE):
            return False
        why_not = reload_mosquitto(self._folder / PID_FILE)
        if why_not:
            logger.info("%s; a broker elsewhere must be told to reload by its own means (deploy/mosquitto)", why_not)
        return not why_not

    def _finish(self, ca: FleetCa, now: datetime, told: bool) -> bool:
        """End the open connections of those whom the list names since the last one; whether there was such work."""
        listed = self._read(CRL_FILE)
        if self._read(DONE_FILE) == listed:
            return False
        if self._evict(ca, now, self._names(serials(listed) - serials(self._read(DONE_FILE)))):
            # Before the broker has read the list, the device comes back: then the next look ends its connection again.
            age = now.timestamp() - (self._folder / CRL_FILE).stat().st_mtime
            if listed is not None and (told or age >= SETTLED_S):
                write_atomic(self._folder / DONE_FILE, listed)
        return True

    def _settle(self, ca: FleetCa, now: datetime) -> None:
        """End the connections that the revoked had opened before, and on which they said who they are only afterwards.

        The broker holds no such connection against the list again. A device that is in the fleet still, whose
        certificate was renewed or replaced, is left alone.
        """
        listed = self._read(CRL_FILE)
        settled = self._read(SETTLED_FILE)
        if listed is None or settled == listed:
            return
        if not self._evict(ca, now, self._names(serials(listed) - serials(settled), revoked=True)):
            return
        if now.timestamp() - (self._folder / CRL_FILE).stat().st_mtime >= SPARE_S:
            write_atomic(self._folder / SETTLED_FILE, listed)

    def _evict(self, ca: FleetCa, now: datetime, names: list[str]) -> bool:
        """End the open connections of devices; whether all were ended."""
        for name in names:
            credential = self._authority.issue_client(ca.intermediate_pem, name=name, now=now, days=LIFE_DAYS)
            try:
                evict(self._settings.broker_host, self._settings.broker_port, name, credential, ca.root_pem)
            except EvictionError as error:
                logger.warning("%s; it is tried again in %g s", error, self._settings.renewal_check_s)
                return False
            logger.info("the connection of the revoked device %s was ended", name)
        return True

    def _evict_all(self, ca: FleetCa, now: datetime) -> None:
        """End the connections of all devices, by id, as far as the time of one look goes."""
        after = self._read(EVICT_FILE)
        if after is None:
            return
        until, last, count = time.monotonic() + EVICT_S, after.decode(), 0
        with self._database.session(read_only=True) as session:
            names = list(session.exec(select(Device.id).where(Device.id > last).order_by(col(Device.id))))
        for name in names:
            if time.monotonic() > until:
                write_atomic(self._folder / EVICT_FILE, last.encode())
                return
            credential = self._authority.issue_client(ca.intermediate_pem, name=name, now=now, days=LIFE_DAYS)
            try:
                evict(self._settings.broker_host, self._settings.broker_port, name, credential, ca.root_pem)
            except EvictionError as error:
                logger.warning("%s; it is tried again in %g s", error, self._settings.renewal_check_s)
                write_atomic(self._folder / EVICT_FILE, last.encode())
                return
            last, count = name, count + 1
        (self._folder / EVICT_FILE).unlink()
        logger.info("the connections of %d devices were ended: the fleet's intermediate was replaced", count)

    def _names(self, fresh: frozenset[str], *, revoked: bool = False) -> list[str]:
        """Device ids of revoked serials. `revoked`: only those that are in the fleet no more."""
        if not fresh:
            return []
        with self._database.session(read_only=True) as session:
            rows = session.exec(select(RevokedCertificate).order_by(col(RevokedCertificate.revoked_at)))
            found = dict.fromkeys(row.device_id for row in rows if row.serial.lstrip("0").lower() in fresh)
            if not revoked or not found:
                return list(found)
            present = select(Device.id).where(col(Device.id).in_(list(found)), col(Device.revoked_at).is_(None))
            members = set(session.exec(present))
            return [name for name in found if name not in members]

    def _read(self, name: str) -> bytes | None:
        try:
            with (self._folder / name).open("rb") as file:
                return file.read(_MAX_BYTES)
        except FileNotFoundError:
            return None

    def _differs(self, name: str, wanted: bytes) -> bool:
        return self._read(name) != wanted

    @contextmanager
    def _alone(self) -> Iterator[None]:
        self._folder.mkdir(mode=0o700, exist_ok=True)
        with _looking, (self._folder / LOCK_FILE).open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def broker_hosts(settings: Settings) -> tuple[str, ...]:
    """The names that the broker's certificate must have: as devices, and as the server itself, reach it."""
    given = (settings.broker_public_host, settings.broker_host, *settings.broker_names, *_LOOPBACK)
    return tuple(dict.fromkeys(name for name in given if name))


def server_files(folder: Path) -> tuple[Path, Path]:
    """CA, and chain with key, by which the server itself connects to a managed broker."""
    return folder / CA_FILE, folder / SERVER_FILE
