"""The data key of a day: what a host that ships WAL all the time seals with, stored before it is used.

A one-shot push wraps its own key in the object's header. A process that stays makes one key object for each UTC day
instead, so that a segment costs no age encryption, and forgets the key when the day or the process ends.
"""

from __future__ import annotations

import threading
from datetime import date

from drservice import telemetry
from drservice.clock import Clock
from drservice.errors import KeyProblemError
from drservice.model.ids import ServiceName
from drservice.repository.envelope import HostKey
from drservice.repository.keys import DataKey, Keyring, make_data_key


class DayKeys:
    """The key of today; safe for threads."""

    def __init__(
        self,
        keyring: Keyring,
        *,
        service: ServiceName,
        recipients: tuple[str, ...],
        signer: HostKey | None,
        clock: Clock,
    ) -> None:
        self._keyring = keyring
        self._service = service
        self._recipients = recipients
        self._signer = signer
        self._clock = clock
        self._lock = threading.Lock()
        self._made: tuple[date, DataKey] | None = None

    def today(self) -> DataKey:
        """Return the key of this UTC day, durably stored for all recipients.

        A clock that is set, forward or back, makes a new key: each key belongs to one stretch of one day.

        Raises:
            ConfigurationError, KeyProblemError, ObjectStoreError: there is none that anybody could open.
        """
        with self._lock:
            now = self._clock.now()
            if self._made is not None and self._made[0] == now.date():
                return self._made[1]
            if self._signer is None:
                raise KeyProblemError(
                    "this host has no signing key and cannot archive",
                    hint="`drservice init` makes it; then add the line it prints to repository.signers.",
                )
            self._made = None
            key = make_data_key(now)
            self._keyring.publish(key, service=self._service, recipients=self._recipients, signer=self._signer, now=now)
            self._made = (now.date(), key)
            telemetry.info("a new data key for this day", key_id=key.id, service=self._service)
            return key
