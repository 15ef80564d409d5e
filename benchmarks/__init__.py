"""Measurements of the engine on this host; ratios are taken within one run."""
