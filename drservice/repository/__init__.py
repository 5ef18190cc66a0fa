"""The repository: encrypted, signed, immutable snapshots and WAL on one object store.

The byte level is ``docs/format.md``. Inside: ``layout`` names keys, ``envelope`` signs, ``keys`` wraps data keys,
``records`` encrypts, ``pack`` and ``nodes`` build what is stored, ``capture`` and ``writer`` take a snapshot,
``snapshots`` commits it, ``walarchive`` keeps WAL, ``reader`` and ``placing`` bring everything back, ``verify``
proves it. Nobody outside knows the pack format.
"""
