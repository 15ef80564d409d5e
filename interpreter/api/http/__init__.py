"""The door: connections and who calls, before any route sees a request."""
