"""Which options of ``restore`` go together. Pure."""

from __future__ import annotations

from drservice.errors import UsageError

_NOT_WITH = {
    "--in-place": (
        frozenset({"--into", "--delta", "--tablespace", "--database", "--neutralize"}),
        "it brings production back, over its own directory",
    ),
    "--database": (frozenset({"--delta", "--action"}), "one database is restored beside production, and promotes"),
}
_ONLY_WITH = {
    "--delta": ("--into", "it says what the directory may be"),
    "--confirm": ("--in-place", "which alone writes over something"),
}


def require_compatible(given: frozenset[str]) -> None:
    """Refuse options that contradict each other, or say nothing alone.

    Raises:
        UsageError: naming them.
    """
    for option in sorted(given & _NOT_WITH.keys()):
        excluded, why = _NOT_WITH[option]
        if wrong := sorted(given & excluded):
            raise UsageError(f"{option} does not go with {', '.join(wrong)}: {why}")
    for option in sorted(given & _ONLY_WITH.keys()):
        needed, why = _ONLY_WITH[option]
        if needed not in given:
            raise UsageError(f"{option} belongs to {needed}: {why}")


def require_plain(given: frozenset[str]) -> None:
    """Refuse for a folder of files what only a cluster has.

    Raises:
        UsageError: naming it.
    """
    if wrong := sorted(given - {"--into"}):
        raise UsageError(f"a folder of files is restored into a new directory, without {', '.join(wrong)}")
