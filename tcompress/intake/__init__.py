"""What is checked about files before their bytes reach a parser."""

from .json_documents import parse_json, read_json
from .tokenizer_files import check_tokenizer
from .toml_documents import read_toml

__all__ = ["check_tokenizer", "parse_json", "read_json", "read_toml"]
