"""Pictures of a report, one module each; inline SVG."""
