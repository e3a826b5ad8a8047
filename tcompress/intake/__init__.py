"""What is checked about files before their bytes reach a parser."""

from .json_documents import parse_json, read_json

__all__ = ["parse_json", "read_json"]
