"""The command line: `baton up`, `baton serve`, ...; the only package that knows both services."""
