"""The limiter's stores: buckets in Redis, rules in a file."""
