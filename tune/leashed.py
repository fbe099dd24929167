"""`python -m penstock.tune.leashed ARGUMENTS`: the `penstock` command, which ends when its stdin does.

Its stdin is a pipe whose other end only its owner holds, and the kernel closes with it, however it ended: of a SIGKILL it
could tell nobody. (PR_SET_PDEATHSIG would have Linux send a signal; but when the *thread* ends that started the process,
and other systems have no such thing.)
"""

import os
import runpy
import signal
import threading


def _end_with_stdin() -> None:
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)  # which a server ends in order on


if __name__ == "__main__":  # processes that it spawns import this module, too
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    runpy.run_module(__spec__.name.split(".")[0], run_name="__main__", alter_sys=True)
