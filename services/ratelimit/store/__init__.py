"""What the limiter keeps and reads: buckets in Redis, rules in a file."""
