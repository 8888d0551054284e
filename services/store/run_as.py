"""Run a program in place of this one: as another user, tied to the life of its parent.

``python -I -S run_as.py UID GID PARENT_PID SIGNAL PROGRAM ARGUMENT...``: a file of the standard library
alone, started before the user changes, because the new user may not be able to read it.  A program of
its own rather than ``preexec_fn``, which may deadlock in a process with threads.
"""

from __future__ import annotations

import ctypes
import os
import sys

_PR_SET_PDEATHSIG = 1


def main(argv: list[str]) -> None:
    uid, gid, parent, number = (int(text) for text in argv[1:5])
    os.chdir("/")  # the directory we were started in may be closed to the new user
    os.umask(0o077)
    if uid != os.geteuid():
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
    if number:
        # After the change of user: the kernel forgets the request when the credentials change.
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
        if os.getppid() != parent:  # it ended before we asked
            return
    os.execv(argv[5], argv[5:])  # noqa: S606 - argv list, no shell


if __name__ == "__main__":
    main(sys.argv)
