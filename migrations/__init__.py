"""
The steps to this version's schema, one numbered file each, applied in that order.

0001 to 0005 are the desktop app's own steps to its schemas 1 to 5, and raise `user_version` to just
that; from 0006 on they are the vault's additions, counted in `vault_meta`. A file defines `TITLE`,
which says what it does, and `upgrade(schema)`. It checks before it makes anything, so it completes
a step that the app left half-finished. It runs in one transaction, and never touches a secret. What
an applied file does never changes.
"""
