"""The tool front for language models: an MCP server over the service."""
