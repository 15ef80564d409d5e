"""``python -m interpreter.device DESCRIPTOR``: the parent of devices' processes, started by the service."""

import socket
import sys

from interpreter.device.parent import serve

if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
