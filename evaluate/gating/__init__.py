"""The gate: verdicts on what a candidate lost beside its baseline."""
