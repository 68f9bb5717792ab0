"""Files of people: declared, uploaded to an object store by signed requests, checked, and handed out by signed requests.

Owns the tables files, file_parts, file_renditions, file_claims and file_admissions, kit's tables for the outbox, the inboxes and
erasure, the objects below `uploads/` and `images/` of its bucket, and the Redis streams `inbox:file` and `inbox:file-accounts`.
Publishes FileUploaded and FileErased (to itself too), FileReady and FileRejected. Takes those two, FileClaimsConfirmed and
FileClaimsReleased of the services that show files, and UserDeleted, on which it erases the account's files. Calls nobody but the
limiter, which bounds a person's watches.
"""
