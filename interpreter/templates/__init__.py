"""Templates: definitions, the builder, and built templates with their snapshots."""
