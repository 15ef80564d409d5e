"""What must outlive the service: one SQLite file."""
