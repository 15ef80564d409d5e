"""The IPython kernel of a session, as it runs after the fork from the zygote.

It differs from a stock ipykernel: what clones of one snapshot must not share can be renewed while it runs, whatever it
is doing; iopub waits for slow readers in place of dropping output; history stays in memory; and see `shell`.
"""

import contextlib
import gc
import json
import multiprocessing.process
import os
import platform
import random
import socket
import sys
import tempfile
import threading
import uuid
from pathlib import Path
from typing import Any

import zmq
from ipykernel.kernelapp import IPKernelApp
from traitlets import Type, default

from kernel_guest.kernel.environment import apply_environment, settle
from kernel_guest.kernel.interrupts import wake_on_urgency
from kernel_guest.kernel.messages import KernelSession, pack
from kernel_guest.kernel.plots import Plots
from kernel_guest.kernel.shell import SessionKernel

PORTS = {"shell_port": 1, "iopub_port": 2, "stdin_port": 3, "control_port": 4, "hb_port": 5}
"""With the ipc transport a "port" is a suffix of the socket's path: ``{ip}-{port}``."""

IOPUB_MESSAGES = 64
"""How many messages of output wait on each side of the iopub socket before the kernel does."""


class KernelApp(IPKernelApp):
    """ipykernel's application with an iopub socket that never drops."""

    kernel_class = Type(SessionKernel, klass="ipykernel.kernelbase.Kernel")

    @default("session")
    def _session_default(self) -> KernelSession:
        session = KernelSession(parent=self)
        session.pack = pack
        return session

    def init_iopub(self, context: Any) -> None:
        """Called by ``initialize``; the options must be set before anybody subscribes."""
        super().init_iopub(context)  # pyright: ignore[reportUnknownMemberType]
        thread: Any = self.iopub_thread

        def set_options() -> None:
            thread.socket.setsockopt(zmq.XPUB_NODROP, 1)
            thread.socket.setsockopt(zmq.SNDHWM, IOPUB_MESSAGES)
            # Else only the first of several clients is told that its subscription counts (iopub_welcome).
            thread.socket.setsockopt(zmq.XPUB_VERBOSE, 1)

        publish: Any = thread._really_send  # noqa: SLF001

        def publish_and_look(*arguments: Any, **options: Any) -> None:
            publish(*arguments, **options)
            # What came in during the sending is not told by the socket's descriptor any more: a client that has
            # subscribed at that moment would get no welcome.
            if thread.socket is not None and thread.socket.getsockopt(zmq.EVENTS) & zmq.POLLIN:
                thread._xpub_stream.flush(zmq.POLLIN)  # noqa: SLF001

        thread._really_send = publish_and_look  # noqa: SLF001

        # In its own thread: a ZeroMQ socket belongs to one.
        thread.schedule(set_options)


def write_connection_file(folder: Path, key: bytes) -> Path:
    """Write the connection file for sockets in ``folder``, readable by its owner alone."""
    path = folder / "connection.json"
    about = {
        "transport": "ipc",
        "ip": str(folder / "kernel"),
        "signature_scheme": "hmac-sha256",
        "kernel_name": "python3",
    }
    text = json.dumps({**about, **PORTS, "key": key.decode("ascii")})
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(descriptor, "w", encoding="utf-8") as file:  # noqa: PTH123  (a descriptor with its own mode)
        file.write(text)
    return path


def run_kernel(connection_file: Path, renewals: socket.socket, session: str, environment: dict[str, str]) -> None:
    """Run a kernel in this process until it is shut down. Tells over ``renewals`` when it is ready.

    Later requests on ``renewals`` renew what clones must not share (see ``renew``), ask where its code is, or end it.
    """
    settle()
    apply_environment(environment)
    renew_random()
    wake_on_urgency()
    app: Any = KernelApp.instance()
    app.initialize(
        [
            f"--IPKernelApp.connection_file={connection_file}",
            "--HistoryManager.hist_file=:memory:",
            # At this level it also does not print how to connect to it.
            "--IPKernelApp.log_level=CRITICAL",
        ]
    )
    app.session.session = session
    Plots(app.shell)
    thread = threading.Thread(target=_serve_renewals, args=(app, renewals), name="renewals", daemon=True)
    thread.start()
    app.start()


def renew(app: Any, key: bytes, session: str, environment: dict[str, str]) -> None:
    """Make everything anew that two clones of one snapshot must not share."""
    renew_random()
    # Signed with the new key, by a new session: nobody who knows another clone's can speak here.
    app.session.key = key
    app.session.session = session
    app.session.digest_history.clear()
    write_connection_file(Path(app.connection_file).parent, key)
    apply_environment(environment)


def renew_random() -> None:
    """Seed every generator that was seeded before the fork or the snapshot; never from the clock."""
    random.seed(os.urandom(64))
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(list(memoryview(os.urandom(64)).cast("I")))
    if ssl := sys.modules.get("ssl"):
        ssl.RAND_add(os.urandom(64), 64.0)
    multiprocessing.process.current_process().authkey = os.urandom(32)
    # uuid1 and temporary names keep state of their own, made at first use; platform keeps the host's name.
    kept = ((uuid, "_node"), (uuid, "_last_timestamp"), (tempfile, "_name_sequence"), (platform, "_uname_cache"))
    for module, name in kept:
        setattr(module, name, None)


def _serve_renewals(app: Any, renewals: socket.socket) -> None:
    # A thread of its own: the shell may be busy, and a restore may not wait for it. What user code could do with
    # this socket it can do to its own kernel anyway.
    with contextlib.suppress(OSError):
        renewals.send(b"{}")
        while request := renewals.recv(1 << 20):
            fields, answer = json.loads(request), {}
            if fields.get("freeze"):
                gc.collect()
                gc.freeze()
            elif fields.get("end"):
                app.kernel.io_loop.add_callback(app.kernel.end)
            elif fields.get("stage"):
                answer = {"stage": app.kernel.stage()}
            else:
                renew(app, fields["key"].encode("ascii"), fields["session"], fields["env"])
            renewals.send(json.dumps(answer).encode())
