"""The HTTP API of the stage service, one file a resource: decode, call, answer.

``events`` is plain ASGI, since it is the hot path; the others are FastAPI routers. `access` holds who
may do what, and the one table from error to status.
"""
