"""What the operators' service does."""
