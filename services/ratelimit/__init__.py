"""Token buckets for Envoy: implements `envoy.service.ratelimit.v3.RateLimitService`.

Owns the Redis keys `ratelimit:{<domain>}:...` and no table. Consumes and publishes no events; calls no service. Envoy cannot send
service tokens, so this service must be reachable on the internal network only.
"""
