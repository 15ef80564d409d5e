"""A self-hosted code interpreter whose sessions are microVMs."""
