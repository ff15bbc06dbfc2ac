"""CRMs as their vendors document them, over real HTTP: strict about requests, with state, faults and webhooks."""
