"""
The steps that lead to this version's schema, one numbered file each, applied in that order.

0001 to 0005 are the desktop app's own steps to its schema 1 to 5, and raise `user_version` to exactly
that; from 0006 on they are the vault's additions, counted in `vault_meta`. A file defines
`TITLE`, which says what it does, and `upgrade(schema)`. It looks before it makes, so that a step which the
app left half-finished is completed. It runs inside one transaction, and never
touches a secret. An applied file never changes.
"""
