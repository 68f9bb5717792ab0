"""What the story service does. Transactions begin and end here; events are written in them."""
