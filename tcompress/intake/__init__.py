"""What is checked about files before their bytes reach a parser."""

from .files import check_files, checked_file, is_there, regular_file
from .json_documents import parse_json, read_json
from .safetensors_header import TensorInfo, read_header
from .tokenizer_files import check_tokenizer
from .toml_documents import read_toml

__all__ = [
    "TensorInfo",
    "check_files",
    "check_tokenizer",
    "checked_file",
    "is_there",
    "parse_json",
    "read_header",
    "read_json",
    "read_toml",
    "regular_file",
]
