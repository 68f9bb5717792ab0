"""Token buckets for Envoy: implements `envoy.service.ratelimit.v3.RateLimitService`; and administrators' view of them.

Owns the Redis keys `ratelimit:{<domain>}:...` and no table. Consumes and publishes no events. Envoy cannot send service tokens, so
this service must be reachable on the internal network only. Calls auth for keys and revocations, because administrators' calls,
which the operators' service passes on, carry their access tokens.
"""
