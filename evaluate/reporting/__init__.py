"""The report: what `evaluate` measured, for people."""
