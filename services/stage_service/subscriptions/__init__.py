"""Subscriptions: what other systems hear of Baton's published events, and how it reaches them."""
