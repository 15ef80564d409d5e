"""The program that runs inside a session's machine; the host imports only `kernel_guest.frames`."""
