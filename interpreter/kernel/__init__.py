"""Kernels as the host sees them: messages, channels, executions and their outputs."""
