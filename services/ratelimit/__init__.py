"""Token buckets for Envoy: answers `envoy.service.ratelimit.v3.RateLimitService`.

Owns the Redis keys `ratelimit:{<domain>}:...` and no table. Takes and gives no events; calls no service. Envoy cannot carry
the tokens by which services know each other, so this service must be reachable on the internal network only.
"""
