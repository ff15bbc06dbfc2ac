"""A made-up quarter of a sales team: its people, its leads, and how each of them acts.

`roster` makes the people, `leads` the events and the answers, `reading` reads the roster a second time, apart
from Baton's own code, and `checks` compares what reached people with that reading.
"""
