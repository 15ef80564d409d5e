"""Sessions: a machine restored from a template, with its kernel, its files and its streams."""
