"""What the notification service does. Transactions begin and end here."""
