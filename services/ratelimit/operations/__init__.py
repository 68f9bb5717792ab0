"""What the rate limiter does: checks, and the rules in force."""
