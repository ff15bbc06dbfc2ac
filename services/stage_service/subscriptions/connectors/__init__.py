"""Connectors: targets that write what Baton publishes into a CRM, each described by one file.

A delivery's way: `target` (tokens, HTTP, what was written) drives `delivery` (pure: which request comes next, what an
answer means) by a `connector` (what a file says, compiled by `connector_file`). `echoes` tells the CRM's webhooks
about these writes from news.
"""
