"""Baton for programs that talk to it; nothing of the services is in here. See `baton.client`."""
