"""Baton's code.

Imports point one way: ``baton`` (the command line) may import both services, the two services never
import each other, and all of them may import ``contracts``, the wire they share. import-linter holds
this in ``make check``.
"""
