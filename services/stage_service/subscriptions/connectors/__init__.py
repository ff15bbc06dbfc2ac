"""Connectors: targets that write what Baton publishes into a CRM, each described by one file.

A delivery's way: `target` (tokens, HTTP, memory) drives `delivery` (pure: which request comes next, what an
answer means) by a `connector`, which `connector_file` has compiled. `memory` knows what was written, and
`echoes` tells the CRM's webhooks about these writes from news.
"""
