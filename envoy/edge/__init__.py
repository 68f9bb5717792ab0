"""Renders the configuration of the edge: one Envoy that turns JSON, SSE, gRPC-Web and gRPC into calls to the services.

Everything that depends on a method (access, rate limit, timeout, HTTP path) is
read from the contract's descriptor set; everything that depends on a deployment (addresses, sizes, times) from one settings file.
"""
