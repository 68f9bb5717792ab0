"""What a check of a rate limit costs, beside envoyproxy/ratelimit on the same Redis.

Run: `make bench-ratelimit`.
"""
