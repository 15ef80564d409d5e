"""Code that guests run to be noisy, each for ``SECONDS``, which stands before it."""

BURN = """
import time
until = time.monotonic() + SECONDS
while time.monotonic() < until:
    began = time.monotonic()
    while time.monotonic() - began < SHARE * 0.05:
        pass
    if SHARE < 1:
        time.sleep((1 - SHARE) * 0.05)
"""
"""Burns ``SHARE`` of a processor."""

OBJECTS = "body = b'{\"data\": {\"application/json\": [' + b'{},' * 10_000_000 + b'0]}, \"metadata\": {}}'"
NUMBERS = "body = b'{\"data\": {\"application/json\": [' + b'0,' * 10_000_000 + b'0]}, \"metadata\": {}}'"
DISPLAYS = """
import time
kernel, until = get_ipython().kernel, time.monotonic() + SECONDS
while time.monotonic() < until:
    # As bytes: making them anew would take the guest longer than the host takes to read them.
    kernel.session.send(kernel.iopub_socket, "display_data", body, parent=kernel.get_parent(), ident=b"display_data")
    time.sleep(0.05)
"""

PRINTS = """
import time
until = time.monotonic() + SECONDS
while time.monotonic() < until:
    print("x" * 80, flush=True)
"""

DIALS = """
import socket, time
until = time.monotonic() + SECONDS
while time.monotonic() < until:
    dialling = [socket.socket(socket.AF_VSOCK) for _ in range(100)]
    for one in dialling:
        one.setblocking(False)
        one.connect_ex((2, 99))
    for one in dialling:
        one.close()
"""
"""Packets of 44 bytes: requests to a port of the host's where nobody listens, which it answers one by one."""

EVENTS = """
import ctypes, os, socket, time
from kernel_guest.frames import Frame, Kind, encode
agent, system = os.pidfd_open(1), ctypes.CDLL(None).syscall
event = encode(Frame(Kind.EVENT, {"event": "kernel_exited", "context": "main", "pid": 9, "status": -9}))
for name in os.listdir("/proc/1/fd"):
    if (stolen := system(438, agent, int(name), 0)) < 0 or not os.readlink(f"/proc/1/fd/{name}").startswith("socket:"):
        continue
    stream = socket.socket(fileno=stolen)
    if stream.family == socket.AF_VSOCK and stream.type & socket.SOCK_STREAM:
        try:
            if stream.getpeername() != (2, 1):
                continue
        except OSError:
            continue
        stream.setblocking(True)
        until = time.monotonic() + SECONDS
        while time.monotonic() < until:
            stream.sendall(event * 100)
"""
"""Run by root: what the agent would tell of its kernels, written into its own stream."""

AS_ROOT = """
import socket, time
with socket.socket(socket.AF_UNIX) as door:
    door.connect("\\0root")
    door.sendall(CODE.encode())
time.sleep(SECONDS)
"""
