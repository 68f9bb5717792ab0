"""Room rpc: gRPC on both sides of a call.

Promises: one server with one interceptor, in which each call is traced, counted, bounded in time, validated against its
contract and admitted by its policy before a servicer sees it (`server`, `interceptor`, `validation`); an error becomes a status
in one place (`statuses`), and a peer's status the error that it was (`peer_errors`); a channel to another service carries a
service token and the rest of the caller's deadline (`channels`, `deadline`).
Invariants: a method without a policy ends the start of the process; an unexpected error is logged with its traceback and
answered with INTERNAL, without a word of it; no client's header reaches another call.
It is not: a place for behaviour. A servicer translates messages, an operation decides, and neither is here.
It imports `kit.data` (a dependency that is away is UNAVAILABLE), `kit.identity`, `kit.runtime` and `kit.errors`.
"""
