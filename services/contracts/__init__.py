"""What both services must do identically because someone outside depends on it.

Entry rule: would an outside consumer notice if the two services did this differently? Then it
belongs here: the events and their envelope, the bus, the problem bodies of the HTTP APIs, API keys,
the roster file. Settings, engines, playbook and alert logic never do. This package imports nothing
at its top, so that reading an event does not pull in Kafka.
"""
