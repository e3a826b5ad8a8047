"""Measuring, reporting and gating."""
