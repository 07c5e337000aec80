"""Starts a program as a unit of systemd would, as far as that goes without systemd.

`restricted.py UNIT DIR -- COMMAND ...`

What is really applied: the system call filter, address families, no writable and executable memory, no namespaces, no
new privileges, and, for root, no capability at all and a file system that is read-only except for /dev/shm and DIR. The
rest of the unit (cgroups, other users, /proc, credentials) is systemd's to apply.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import subprocess
import sys
from pathlib import Path

ALLOW, REFUSE = 0x7FFF0000, 0x00050000
EQUAL, MASKED_EQUAL = 4, 7
PR_CAPBSET_DROP = 24
LAST_CAPABILITY = 40
CLONE_NEWNS, MS_BIND, MS_REC, MS_PRIVATE = 0x20000, 0x1000, 0x4000, 0x40000
AT_FDCWD, AT_RECURSIVE, READ_ONLY = -100, 0x8000, 1
PROT_WRITE, PROT_EXEC = 2, 4
NEW_NAMESPACES = (0x20000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000)


class Comparison(ctypes.Structure):
    """`struct scmp_arg_cmp`."""

    _fields_ = (("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64))


class Attributes(ctypes.Structure):
    """`struct mount_attr`."""

    _fields_ = tuple((name, ctypes.c_uint64) for name in ("set", "clear", "propagation", "userns"))


def values(unit: str, name: str) -> list[str]:
    """All words of a setting, in order; an empty one begins anew."""
    found: list[str] = []
    for line in unit.splitlines():
        key, _, value = line.partition("=")
        if key == name:
            words = value.split()
            found = [*found, *(f"~{word.lstrip('~')}" for word in words)] if value.startswith("~") else [*found, *words]
    return found


def expanded(name: str) -> set[str]:
    """The system calls of a group, or the one that it is."""
    if not name.startswith("@"):
        return {name}
    listed = subprocess.run(
        ["systemd-analyze", "syscall-filter", name], check=True, capture_output=True, text=True
    ).stdout
    members = [line.strip() for line in listed.splitlines()[1:]]
    return {call for member in members if member and not member.startswith("#") for call in expanded(member)}


def allowed_calls(unit: str) -> set[str]:
    """What SystemCallFilter leaves; the execve of the program itself is systemd's to allow."""
    calls: set[str] = {"execve"}
    for word in values(unit, "SystemCallFilter"):
        if word.startswith("~"):
            calls -= expanded(word[1:])
        else:
            calls |= expanded(word)
    return calls


class Filter:
    """One of libseccomp's."""

    def __init__(self, default: int) -> None:
        self._library = ctypes.CDLL("libseccomp.so.2", use_errno=True)
        self._library.seccomp_init.restype = ctypes.c_void_p
        self._context = ctypes.c_void_p(self._library.seccomp_init(default))

    def rule(self, action: int, call: str, *comparisons: tuple[int, int, int, int]) -> None:
        number = self._library.seccomp_syscall_resolve_name(call.encode())
        if number < 0:  # of another architecture
            return
        given = (Comparison * len(comparisons))(*(Comparison(*each) for each in comparisons))
        done = self._library.seccomp_rule_add_array(self._context, action, number, len(comparisons), given)
        assert done == 0, (call, done)

    def load(self) -> None:
        done = self._library.seccomp_load(self._context)
        assert done == 0, done


def filter_calls(unit: str) -> None:
    """What is not allowed fails with EPERM from here on."""
    refuse = REFUSE | errno.EPERM
    calls = Filter(refuse)
    for call in allowed_calls(unit) - {"socket"}:
        calls.rule(ALLOW, call)
    for family in values(unit, "RestrictAddressFamilies"):
        calls.rule(ALLOW, "socket", (0, EQUAL, getattr(socket, family), 0))
    arguments = Filter(ALLOW)
    if values(unit, "MemoryDenyWriteExecute") == ["yes"]:
        both = PROT_WRITE | PROT_EXEC
        arguments.rule(refuse, "mmap", (2, MASKED_EQUAL, both, both))
        arguments.rule(refuse, "mprotect", (2, MASKED_EQUAL, PROT_EXEC, PROT_EXEC))
        arguments.rule(refuse, "pkey_mprotect", (2, MASKED_EQUAL, PROT_EXEC, PROT_EXEC))
    if values(unit, "RestrictNamespaces") == ["yes"]:
        for flag in NEW_NAMESPACES:
            arguments.rule(refuse, "clone", (0, MASKED_EQUAL, flag, flag))
        arguments.rule(REFUSE | errno.ENOSYS, "clone3")  # its flags are in memory, so systemd has it seem not there
        arguments.rule(refuse, "unshare")
        arguments.rule(refuse, "setns")
    arguments.load()
    calls.load()


def make_read_only(*writable: Path) -> None:
    """All file systems but these folders, for this process and its children."""
    libc = ctypes.CDLL(None, use_errno=True)

    def call(name: str, *arguments: object) -> None:
        if getattr(libc, name)(*arguments) != 0:
            raise OSError(ctypes.get_errno(), name)

    call("unshare", CLONE_NEWNS)
    call("mount", None, b"/", None, ctypes.c_ulong(MS_REC | MS_PRIVATE), None)
    for folder in writable:
        call("mount", bytes(folder), bytes(folder), None, ctypes.c_ulong(MS_BIND), None)
    shut, opened = Attributes(set=READ_ONLY), Attributes(clear=READ_ONLY)
    call("mount_setattr", AT_FDCWD, b"/", AT_RECURSIVE, ctypes.byref(shut), ctypes.sizeof(shut))
    for folder in writable:
        call("mount_setattr", AT_FDCWD, bytes(folder), 0, ctypes.byref(opened), ctypes.sizeof(opened))
    for capability in range(LAST_CAPABILITY + 1):
        call("prctl", PR_CAPBSET_DROP, ctypes.c_ulong(capability), 0, 0, 0)


def main() -> None:
    unit, folder, command = Path(sys.argv[1]).read_text(), Path(sys.argv[2]), sys.argv[4:]
    if os.geteuid() == 0:
        make_read_only(Path("/dev/shm"), folder)
    filter_calls(unit)
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
