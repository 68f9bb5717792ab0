"""Renders the configuration of the mesh's edge: one Envoy that turns JSON, SSE, gRPC-Web and gRPC into calls of the services.

Everything that depends on a method (who may call it, how it is limited, how long it may take, which JSON path leads to it) is
read from the contract's descriptor set; everything that depends on a deployment (addresses, sizes, times) from one settings file.
"""
