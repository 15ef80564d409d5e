"""The REST front: one router module per subject, no logic of its own."""
