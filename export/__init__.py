"""Stages that write a deployable file, and the check that it computes the same."""
