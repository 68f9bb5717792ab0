"""Plumbing that every service shares, in five rooms and `kit.errors`.

Imports run one way: `events` > `rpc` > `data` > `identity` > `runtime` > `errors`; import-linter refuses the rest.
The kit knows no domain noun and imports no service.
"""
