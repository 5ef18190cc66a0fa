"""Decompressing one zstd frame in one call, into memory of the right size.

Python's module decompresses into blocks of 32 KiB and more, through a window of its own, joins them, and makes the
decoder's tables anew for each frame: of pages of 64 KiB 0.6 GB/s, where the library beneath it does 2.4. So that
library is called, as the module itself has loaded it; there is no second one and nothing to install. Where its
functions cannot be reached, and for everything that is not one whole frame of the promised length, the answer is
``None``: the module then says what is wrong, or does it.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

_MODULE = "_zstd" if sys.version_info >= (3, 14) else "backports.zstd._zstd"
_MAGIC = b"\x28\xb5\x2f\xfd"


@dataclass(frozen=True, slots=True)
class _Library:
    create: Any
    free: Any
    frame_bytes: Any
    decompress: Any


class _Tables:
    """The decoder's tables of one thread; they go when it ends."""

    def __init__(self, library: _Library) -> None:
        self._free = library.free
        self.pointer: int | None = library.create()

    def __del__(self) -> None:
        self._free(self.pointer)  # which does nothing with none


class _Contexts(threading.local):
    def __init__(self, library: _Library) -> None:
        self.tables = _Tables(library)


def decompress_frame(stored: bytes, plain_length: int) -> memoryview | None:
    """Return the plain bytes if ``stored`` is one frame, whole and nothing behind it, of exactly that many."""
    found = _contexts()
    if found is None or plain_length == 0 or stored[:4] != _MAGIC:
        return None
    library, contexts = found
    pointer = contexts.tables.pointer
    if pointer is None or library.frame_bytes(stored, len(stored)) != len(stored):
        return None
    plain = bytearray(plain_length)
    room = (ctypes.c_char * plain_length).from_buffer(plain)
    if library.decompress(pointer, room, plain_length, stored, len(stored)) != plain_length:
        return None  # an error is a number far beyond any length
    return memoryview(plain).toreadonly()


@cache
def _contexts() -> tuple[_Library, _Contexts] | None:
    library = _load()
    return None if library is None else (library, _Contexts(library))


def _load() -> _Library | None:
    try:
        module = import_module(_MODULE)
        functions = ctypes.CDLL(module.__file__)  # None, if built in, is the program itself
        return _Library(
            create=_typed(functions.ZSTD_createDCtx, ctypes.c_void_p),
            free=_typed(functions.ZSTD_freeDCtx, ctypes.c_size_t, ctypes.c_void_p),
            frame_bytes=_typed(
                functions.ZSTD_findFrameCompressedSize, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_size_t
            ),
            decompress=_typed(
                functions.ZSTD_decompressDCtx,
                ctypes.c_size_t,
                ctypes.c_void_p,
                ctypes.c_void_p,
                ctypes.c_size_t,
                ctypes.c_char_p,
                ctypes.c_size_t,
            ),
        )
    except (ImportError, OSError, AttributeError):
        return None


def _typed(function: Any, result: Any, *arguments: Any) -> Any:  # noqa: ANN401 - what ctypes makes has no types
    function.restype, function.argtypes = result, arguments
    return function
