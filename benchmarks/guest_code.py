"""Code that the benchmarks run inside a session, to measure what the same guest does alone."""

SERVER = """
import socket, threading
def serve(connection):
    with connection:
        kind = connection.recv(1)
        if kind == b"e":
            while data := connection.recv(65536):
                connection.sendall(data)
        elif kind == b"s":
            block = bytes(262144)
            for _ in range(BLOCKS):
                connection.sendall(block)
        else:
            count, block = 0, bytearray(262144)
            while size := connection.recv_into(block):
                count += size
            connection.sendall(str(count).encode())
def accept():
    listener = socket.socket(socket.AF_VSOCK)
    listener.setsockopt(socket.AF_VSOCK, socket.SO_VM_SOCKETS_BUFFER_MAX_SIZE, 2 << 20)
    listener.setsockopt(socket.AF_VSOCK, socket.SO_VM_SOCKETS_BUFFER_SIZE, 2 << 20)
    listener.bind((socket.VMADDR_CID_ANY, 5000))
    listener.listen(128)
    while True:
        threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
threading.Thread(target=accept, daemon=True).start()
"""

SOCKET_PAIR = """
import os, socket, time
ours, theirs = socket.socketpair()
if os.fork() == 0:
    ours.close()
    block = bytes(262144)
    for _ in range(BLOCKS):
        theirs.sendall(block)
    os._exit(0)
theirs.close()
block, count, started = bytearray(262144), 0, time.perf_counter()
while size := ours.recv_into(block):
    count += size
print(count / (time.perf_counter() - started) / 1e6)
os.wait()
"""

ROUND_TRIPS = """
import subprocess, sys
client = '''
import statistics, sys, time
from jupyter_client import BlockingKernelClient
client = BlockingKernelClient(connection_file=sys.argv[1])
client.load_connection_file()
client.start_channels(hb=False)
client.wait_for_ready(timeout=60)
times = []
for _ in range(int(sys.argv[2])):
    started = time.perf_counter()
    request = client.execute("1+1")
    idle = reply = False
    while not (idle and reply):
        if not reply:
            reply = client.get_shell_msg(timeout=60)["parent_header"].get("msg_id") == request
        message = client.get_iopub_msg(timeout=60)
        idle = (message["parent_header"].get("msg_id") == request
                and message["content"].get("execution_state") == "idle")
    times.append(time.perf_counter() - started)
print(statistics.median(times[len(times) // 4:]))
'''
# The kernel must be idle to answer, so the client measures after this cell has ended.
measuring = subprocess.Popen([sys.executable, "-c", client, CONNECTION, str(ROUNDS)], stdout=subprocess.PIPE, text=True)
"""
