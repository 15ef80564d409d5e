"""``python -m interpreter.device SOCKET FILTER``: the parent of devices' processes, started by the service.

Both are descriptors; from the second it reads the filter program for the devices' system calls.
"""

import os
import socket
import sys

from interpreter.device.parent import serve

if __name__ == "__main__":
    with os.fdopen(int(sys.argv[2]), "rb") as program:
        system_calls = program.read()
    serve(socket.socket(fileno=int(sys.argv[1])), system_calls)
