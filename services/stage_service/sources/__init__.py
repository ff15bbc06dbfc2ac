"""Sources: how a vendor's deliveries are verified, read, split and mapped to lead events.

A source is data, one file in ``sources/``. This package reads those files (`source_file`), checks that a
delivery is authentic (`signatures`), decodes its body (`bodies`) and maps it (`mapping`). It does no I/O:
where secrets and quarantined deliveries are kept is the business of the modules beside it.
"""
