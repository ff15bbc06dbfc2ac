"""CRMs as their vendors document them, over real HTTP: strict, with state, faults and webhooks."""
