"""Numbers of timelines that a restored cluster was given: each is taken once (docs/format.md, section 12; trap T34).

PostgreSQL gives the timeline that begins at the end of a recovery the first number of which it finds no history. Two
clusters restored from one point find the same one, as long as neither has archived: both would then archive different
WAL under the same names. So a restore takes a number before the server promotes. Only that it is taken is written:
whether the timeline ever comes to be, and which history the service follows, its ``.history`` file tells.
"""

from __future__ import annotations

import re

from drservice.canonical import Json
from drservice.clock import Clock
from drservice.errors import ObjectExistsError
from drservice.model.ids import SystemId
from drservice.model.wal import Timeline
from drservice.objectstore.interface import ObjectStore
from drservice.repository import layout
from drservice.repository.envelope import HostKey, write_envelope
from drservice.repository.records import Scope

_NAME = re.compile(r"[0-7][0-9A-F]{7}\Z")
"""Half of what a number may be: one that somebody placed at the very end must not leave none to take."""


def taken_timelines(store: ObjectStore, scope: Scope, system_id: SystemId) -> frozenset[Timeline]:
    """Return the numbers that were taken; what is there counts, whoever wrote it: a number passed over is no loss.

    Raises:
        ObjectStoreError: the listing is not complete.
    """
    prefix = layout.timeline_prefix(scope.service, scope.component, system_id)
    names = (info.key.removeprefix(prefix) for info in store.list(prefix))
    return frozenset(Timeline(int(name, 16)) for name in names if _NAME.match(name))


def take_timeline(
    store: ObjectStore, signer: HostKey, scope: Scope, system_id: SystemId, *, above: Timeline, clock: Clock
) -> Timeline:
    """Take the first number above ``above`` that nobody has taken; once it is returned it is this restore's alone.

    Raises:
        ObjectStoreError: it was not taken, or is not known to be.
    """
    number = max(above, *taken_timelines(store, scope, system_id), 0) + 1
    while True:
        timeline = Timeline(number)
        key = layout.timeline_key(scope.service, scope.component, system_id, timeline)
        now = clock.now()
        fields: dict[str, Json] = {"system_id": system_id, "timeline": number}
        envelope = write_envelope(
            signer=signer, repository=scope.repository, key=key, kind="timeline", fields=fields, body=[], now=now
        )
        try:
            store.create(key, envelope)
        except ObjectExistsError:
            number += 1  # another restore was faster
        else:
            return timeline
