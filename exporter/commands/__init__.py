"""The command line: each file reads options, calls one stage function and shows its result."""
