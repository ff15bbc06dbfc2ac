"""Simulations of a candidate playbook: what they read, the processes they run in, what they answer."""
