"""Room identity: who calls, who may, and what proves it.

Promises: access tokens and service tokens are verified by one rule (`tokens`, RFC 8725); a revoked token is refused from the
moment the process hears of it, and open streams end (`revocations`, `revocation_feed`); access is decided by the policy in the
method's contract, denied when it has none (`access`); what leaves the mesh and comes back is signed, what nobody may read on
its way is sealed (`signing`, `sealing`); e-mail addresses and displayed names have one form (`email_addresses`,
`display_text`).
Invariants: an unknown state of revocations refuses writes; no error or log line shows a credential; keys never appear in a
`repr`.
It is not: the auth service. It keeps no account, hashes no password and issues no access token.
It imports `kit.runtime` and `kit.errors`.
"""
