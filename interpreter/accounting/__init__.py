"""What each session used, every second."""
