"""A restored guest and what can be done with it: its kernels, its files. The library's own product."""
