"""The system-call filter of a sandbox: a list of what nothing recovered has any business to ask of the kernel.

A classic BPF program (seccomp(2)) as bwrap's ``--seccomp`` takes it. It does not replace the namespaces: it keeps code
inside away from the parts of the kernel where the ways out of namespaces have been found. What is refused answers as a
kernel without it would, so that programs fall back; another machine's system calls (32-bit ones among them) kill.

A list of what is refused, not of what is allowed, because the programs inside are the host's, of any version. A machine
whose numbers are not known here gets no sandbox. Standard library only, because the keeper loads it.
"""

from __future__ import annotations

import errno
import os
import platform
import struct
from dataclasses import dataclass

from drservice.errors import EnvironmentFailedError

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_KILL, _FAIL, _ALLOW = 0x80000000, 0x00050000, 0x7FFF0000
_NUMBER, _MACHINE, _FIRST_ARGUMENT = 0, 4, 16
"""Offsets in struct seccomp_data; of an argument the lower half, both machines are little-endian."""
_X32 = 0x40000000
_NAMESPACES = 0x7E020080
"""CLONE_NEWNS, CLONE_NEWTIME, CLONE_NEWCGROUP, UTS, IPC, USER, PID, NET (clone(2))."""
_FAMILIES = (1, 2, 10, 16)
"""AF_UNIX, AF_INET, AF_INET6, AF_NETLINK: those that network namespaces separate. AF_VSOCK (40) they do not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What a kernel calls its system calls on one kind of machine."""

    audit_number: int
    """AUDIT_ARCH_* (linux/audit.h)."""
    clone: int
    socket: int
    refused: dict[str, int]


_SAME_EVERYWHERE = {
    "io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427, "open_tree": 428, "move_mount": 429,
    "fsopen": 430, "fsconfig": 431, "fsmount": 432, "fspick": 433, "clone3": 435, "pidfd_getfd": 438,
    "mount_setattr": 442, "quotactl_fd": 443,
}  # fmt: skip
_AS_IF_ABSENT = frozenset({"clone3", "io_uring_setup", "io_uring_enter", "io_uring_register"})
"""Programs try these and fall back to older ones; clone3 hides its flags from a filter."""

MACHINES = {
    "x86_64": Machine(
        audit_number=0xC000003E,
        clone=56,
        socket=41,
        refused=_SAME_EVERYWHERE | {
            "ptrace": 101, "syslog": 103, "personality": 135, "modify_ldt": 154, "pivot_root": 155, "adjtimex": 159,
            "chroot": 161, "acct": 163, "settimeofday": 164, "mount": 165, "umount2": 166, "swapon": 167,
            "swapoff": 168, "reboot": 169, "sethostname": 170, "setdomainname": 171, "iopl": 172, "ioperm": 173,
            "init_module": 175, "delete_module": 176, "quotactl": 179, "clock_settime": 227, "kexec_load": 246,
            "add_key": 248, "request_key": 249, "keyctl": 250, "unshare": 272, "perf_event_open": 298,
            "fanotify_init": 300, "name_to_handle_at": 303, "open_by_handle_at": 304, "clock_adjtime": 305,
            "setns": 308, "process_vm_readv": 310, "process_vm_writev": 311, "kcmp": 312, "finit_module": 313,
            "kexec_file_load": 320,
            "bpf": 321, "userfaultfd": 323,
        },
    ),
    "aarch64": Machine(
        audit_number=0xC00000B7,
        clone=220,
        socket=198,
        refused=_SAME_EVERYWHERE | {
            "umount2": 39, "mount": 40, "pivot_root": 41, "chroot": 51, "quotactl": 60, "acct": 89, "personality": 92,
            "unshare": 97, "kexec_load": 104, "init_module": 105, "delete_module": 106, "clock_settime": 112,
            "syslog": 116, "ptrace": 117, "reboot": 142, "sethostname": 161, "setdomainname": 162, "settimeofday": 170,
            "adjtimex": 171, "add_key": 217, "request_key": 218, "keyctl": 219, "swapon": 224, "swapoff": 225,
            "perf_event_open": 241, "fanotify_init": 262, "name_to_handle_at": 264, "open_by_handle_at": 265,
            "clock_adjtime": 266, "setns": 268, "process_vm_readv": 270, "process_vm_writev": 271, "kcmp": 272,
            "finit_module": 273, "bpf": 280, "userfaultfd": 282, "kexec_file_load": 294,
        },
    ),
}  # fmt: skip


def build_filter(machine: str) -> bytes:
    """Return the program for a kind of machine (as ``uname -m`` calls it).

    Raises:
        EnvironmentFailedError: its system calls are not known here.
    """
    known = MACHINES.get(machine)
    if known is None:
        raise EnvironmentFailedError(
            f"there is no system-call filter for {machine}",
            hint=f"A sandbox can be made on {' and '.join(sorted(MACHINES))}; recover on such a machine.",
        )
    program = [
        _step(_LOAD, _MACHINE),
        _step(_EQUAL, known.audit_number, met=1),
        _step(_RETURN, _KILL),
        _step(_LOAD, _NUMBER),
        _step(_AT_LEAST, _X32, unmet=1),
        _step(_RETURN, _KILL),
    ]
    for name, number in sorted(known.refused.items()):
        answer = errno.ENOSYS if name in _AS_IF_ABSENT else errno.EPERM
        program += [_step(_EQUAL, number, unmet=1), _step(_RETURN, _FAIL | answer)]
    program += [
        _step(_EQUAL, known.clone, unmet=3),
        _step(_LOAD, _FIRST_ARGUMENT),
        _step(_ANY_BIT, _NAMESPACES, unmet=1),
        _step(_RETURN, _FAIL | errno.EPERM),
        _step(_LOAD, _NUMBER),
        _step(_EQUAL, known.socket, unmet=len(_FAMILIES) + 2),
        _step(_LOAD, _FIRST_ARGUMENT),
        *(_step(_EQUAL, family, met=len(_FAMILIES) - place) for place, family in enumerate(_FAMILIES)),
        _step(_RETURN, _FAIL | errno.EAFNOSUPPORT),
        _step(_RETURN, _ALLOW),
    ]
    return b"".join(program)


def open_filter() -> int:
    """Return a descriptor to read this machine's program from; the caller closes it.

    Raises:
        EnvironmentFailedError: this machine's system calls are not known here.
    """
    program = build_filter(platform.machine())
    descriptor = os.memfd_create("drservice-filter", os.MFD_CLOEXEC)
    os.write(descriptor, program)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def _step(code: int, value: int, *, met: int = 0, unmet: int = 0) -> bytes:
    """Return one struct sock_filter; ``met`` and ``unmet`` are how many steps a comparison skips."""
    return struct.pack("=HBBI", code, met, unmet, value)
