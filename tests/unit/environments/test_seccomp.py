"""The system-call filter, run by a small interpreter of its own language."""

from __future__ import annotations

import errno
import re
import struct
from pathlib import Path

import pytest

from drservice.environments.seccomp import MACHINES, build_filter
from drservice.errors import EnvironmentFailedError

KILLED, ALLOWED = "killed", "allowed"
HEADERS = {
    "x86_64": [Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")],
    "aarch64": [Path("/usr/include/asm-generic/unistd.h")],
}
NEWUSER = 0x10000000


def answer(program: bytes, *, machine: int, number: int, argument: int = 0) -> str | int:
    """Interpret the program (linux/filter.h) for one call; returns the error number it fails with."""
    data = struct.pack("<IIQ6Q", number, machine, 0, argument, 0, 0, 0, 0, 0)
    steps = list(struct.iter_unpack("=HBBI", program))
    accumulator = place = 0
    while True:
        code, met, unmet, value = steps[place]
        place += 1
        if code == 0x20:
            (accumulator,) = struct.unpack_from("<I", data, value)
        elif code == 0x06:
            if value & 0xFFFF0000 == 0x00050000:
                return int(value & 0xFFFF)
            return {0x80000000: KILLED, 0x7FFF0000: ALLOWED}[value]
        else:
            holds = {0x15: accumulator == value, 0x35: accumulator >= value, 0x45: bool(accumulator & value)}[code]
            place += met if holds else unmet


@pytest.mark.parametrize("name", MACHINES)
def test_what_is_on_the_list_fails_and_what_is_not_is_allowed(name: str) -> None:
    known, program = MACHINES[name], build_filter(name)
    refused = set(known.refused.values())
    for number in range(600):
        seen = answer(program, machine=known.audit_number, number=number, argument=1)
        if number in refused:
            assert seen in {errno.EPERM, errno.ENOSYS}
        else:
            assert seen == ALLOWED, number


@pytest.mark.parametrize("name", MACHINES)
def test_a_process_may_be_made_but_no_namespace(name: str) -> None:
    known, program = MACHINES[name], build_filter(name)
    assert answer(program, machine=known.audit_number, number=known.clone, argument=0x01200011) == ALLOWED
    for flag in (0x20000, 0x80, 0x02000000, 0x04000000, 0x08000000, NEWUSER, 0x20000000, 0x40000000):
        seen = answer(program, machine=known.audit_number, number=known.clone, argument=flag | 17)
        assert seen == errno.EPERM, hex(flag)
    assert answer(program, machine=known.audit_number, number=known.refused["clone3"]) == errno.ENOSYS


@pytest.mark.parametrize("name", MACHINES)
def test_only_the_families_that_a_network_namespace_separates_have_sockets(name: str) -> None:
    known, program = MACHINES[name], build_filter(name)
    allowed = {
        family
        for family in range(64)
        if answer(program, machine=known.audit_number, number=known.socket, argument=family) == ALLOWED
    }
    assert allowed == {1, 2, 10, 16}
    assert answer(program, machine=known.audit_number, number=known.socket, argument=40) == errno.EAFNOSUPPORT


@pytest.mark.parametrize("name", MACHINES)
def test_calls_of_another_machine_kill(name: str) -> None:
    known, program = MACHINES[name], build_filter(name)
    assert answer(program, machine=0x40000003, number=1) == KILLED  # i386
    assert answer(program, machine=known.audit_number, number=0x40000001) == KILLED  # x32


def test_an_unknown_machine_gets_no_sandbox() -> None:
    with pytest.raises(EnvironmentFailedError, match="no system-call filter for pdp11"):
        build_filter("pdp11")


@pytest.mark.parametrize("name", MACHINES)
def test_the_numbers_are_those_of_the_kernels_headers(name: str) -> None:
    if not all(path.exists() for path in HEADERS[name]):
        pytest.skip("the kernel's headers are not installed")
    text = "\n".join(path.read_text(encoding="utf-8") for path in HEADERS[name])
    numbers = {found[0]: int(found[1]) for found in re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", text)}
    known = MACHINES[name]
    for call, number in {**known.refused, "clone": known.clone, "socket": known.socket}.items():
        assert numbers[call] == number, call
