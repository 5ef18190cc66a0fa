"""Locks of what a backup uses again: no snapshot is committed whose packs may be deleted before its own object.

What is stored now is locked when it is stored. That falls short for a run that crosses the end of a generation: then
its own packs and key are locked for longer. So are packs of earlier runs, the keys that open them and the repository's
own files where they fall short. Locks end at the ends of generations (``model.storing``), and the host remembers in its
cache until when all packs of its last snapshot are locked, so this happens once per generation and costs nothing in
between. Without the cache nothing is used again; without that memory everything is extended.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime

from drservice.clock import from_iso, to_iso
from drservice.errors import ObjectNotFoundError
from drservice.model.ids import KeyId, ServiceName
from drservice.model.storing import LockSettings
from drservice.objectstore.interface import ObjectStore
from drservice.repository import layout

META = "locked"
"""The name in the cache of a snapshot."""
_REQUESTS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Reused:
    """What a snapshot uses, by whose it is.

    Args:
        packs: keys of packs of the last snapshot.
        resumed: keys of packs that a killed run left: when they were stored is not known.
        key_ids: data keys that open these two.
        own: keys of packs that this run stored.
        own_key_id: the data key of this run.
    """

    packs: Sequence[str]
    resumed: Sequence[str]
    key_ids: Iterable[KeyId]
    own: Sequence[str]
    own_key_id: KeyId


def extend_reused(
    store: ObjectStore,
    reused: Reused,
    *,
    service: ServiceName,
    meta: Mapping[str, str],
    began_at: datetime,
    now: datetime,
) -> dict[str, str]:
    """Lock what is used again for as long as what was stored in this run; return what the cache shall remember.

    Args:
        store: a store that may lock objects; otherwise nothing is done.
        reused: what is used again.
        service: whose.
        meta: what the cache of the last snapshot says.
        began_at: by the store's clock, before this run stored anything that is locked.
        now: by the store's clock.

    Raises:
        StoreDeniedError: this host may not. The snapshot must not be committed.
        ObjectNotFoundError: a pack or key is gone.
        ObjectStoreError: the store failed.
    """
    lock = store.capabilities.lock
    if lock is None:
        return {}
    until, of_this_run = lock.generation_end(now), lock.generation_end(began_at)
    known = _recall(meta, store, lock)
    is_short = known is None or known < lock.needed_until(now)
    old = [*(reused.packs if is_short else ()), *reused.resumed]
    own = reused.own if of_this_run < until else ()
    if old or own:
        key_ids = {*(reused.key_ids if old else ()), *((reused.own_key_id,) if own else ())}
        _extend_all(store, [*old, *own, *_opening(store, service, key_ids)], until)
        of_this_run = until if own else of_this_run
    if old or own or is_short:
        _extend_all(store, (layout.REPOSITORY_FILE,), until)
        for name in (layout.BREAKGLASS_TEXT, layout.BREAKGLASS_SCRIPT):
            _extend_if_there(store, name, until)
    return {META: _remembered(lock, of_this_run if known is None or is_short else min(known, of_this_run), store)}


def _opening(store: ObjectStore, service: ServiceName, key_ids: Iterable[KeyId]) -> Iterator[str]:
    for key_id in key_ids:
        yield from (info.key for info in store.list(layout.data_key_prefix(service, key_id)))


def _extend_all(store: ObjectStore, keys: Sequence[str], until: datetime) -> None:
    with ThreadPoolExecutor(max_workers=min(_REQUESTS, len(keys)), thread_name_prefix="extend-lock") as threads:
        futures = [threads.submit(store.extend_lock, key, until) for key in keys]
        try:
            for future in futures:
                future.result()
        except BaseException:
            threads.shutdown(wait=False, cancel_futures=True)
            raise


def _extend_if_there(store: ObjectStore, key: str, until: datetime) -> None:
    """Lock one of the texts for an emergency, which anybody can write again."""
    try:
        store.extend_lock(key, until)
    except ObjectNotFoundError:
        return


def _remembered(lock: LockSettings, until: datetime, store: ObjectStore) -> str:
    return f"{lock.mode.value} {to_iso(until)} {store.description}"


def _recall(meta: Mapping[str, str], store: ObjectStore, lock: LockSettings) -> datetime | None:
    """Return until when all packs of the last snapshot are locked here in this way, ``None`` if that is not known."""
    words = meta.get(META, "").split(" ", 2)
    if len(words) != 3 or words[0] != lock.mode.value or words[2] != store.description:
        return None
    return from_iso(words[1])
