"""Kernels in microVMs for Jupyter's front ends on this machine: a kernel provisioner, a launcher, kernelspecs."""
