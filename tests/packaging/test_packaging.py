import ast
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
FOLDERS = {
    "tcompress": "tcompress",
    "compress": "tcompress.compress",
    "export": "tcompress.export",
    "evaluate": "tcompress.evaluate",
}
# What each folder may import of the others; the front doors are held to a rule of their own.
MAY_IMPORT = {
    "tcompress": set(),
    "compress": {"tcompress"},
    "export": {"tcompress", "compress"},
    "evaluate": {"tcompress", "compress", "export"},
}
# What a user calls, on a command line and in a test: they look at every stage, lazily.
FRONT_DOORS = {"tcompress.cli", "tcompress.testing"}


class Module(NamedTuple):
    path: Path
    folder: str
    name: str

    @property
    def package(self) -> str:
        is_package = self.path.name == "__init__.py"
        return self.name if is_package else self.name.rpartition(".")[0]


class Import(NamedTuple):
    target: str
    line: int
    relative: bool
    lazy: bool


def modules() -> list[Module]:
    found = []
    for folder, package in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            if parts[-1] == "__init__":
                parts = parts[:-1]
            found.append(Module(path, folder, ".".join((package, *parts))))
    return found


def folder_of(target: str) -> str | None:
    """Name the folder that holds a module, None where it is not ours."""
    parts = target.split(".")
    if parts[0] != "tcompress":
        return None
    return parts[1] if len(parts) > 1 and parts[1] in FOLDERS else "tcompress"


def named_by(node: ast.AST, package: str) -> list[tuple[str, bool]]:
    """List the modules that one statement or call imports, and whether relatively."""
    match node:
        case ast.Import(names=names):
            return [(alias.name, False) for alias in names]
        case ast.ImportFrom(module=module, names=names, level=level):
            base = package.rsplit(".", level - 1)[0] if level else ""
            origin = ".".join(part for part in (base, module) if part)
            # `from tcompress import compress` names the package in its alias.
            return [(f"{origin}.{alias.name}", level > 0) for alias in names]
        case ast.Call(
            func=ast.Name(id="import_module" | "__import__") | ast.Attribute(attr="import_module"),
            args=[ast.Constant(value=str(target)), *_],
        ):
            relative = target.startswith(".")
            return [(f"{package}{target}" if relative else target, relative)]
    return []


def imports_in(source: str, package: str) -> Iterator[Import]:
    def walk(node: ast.AST, lazy: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            for target, relative in named_by(child, package):
                yield Import(target, child.lineno, relative, lazy)
            in_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from walk(child, lazy or in_function)

    yield from walk(ast.parse(source), lazy=False)


def broken_rule(module: Module, found: Import) -> str | None:
    """Say which rule of the layering an import breaks, None where it breaks none."""
    target = folder_of(found.target)
    if target is None:
        return None
    if target == module.folder:
        return None if found.relative else "imports its own folder absolutely"
    if found.relative:
        return "imports another folder relatively"
    if module.name in FRONT_DOORS:
        return None if found.lazy else "imports a stage when it is loaded"
    if target not in MAY_IMPORT[module.folder]:
        return "imports against the direction of the layers"
    if found.target.startswith(tuple(FRONT_DOORS)):
        return "imports a front door, which looks at the stages and not they at it"
    return None


def declared() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_declared_packages_are_the_folders_with_an_init():
    found = {module.name for module in modules() if module.path.name == "__init__.py"}
    assert set(declared()["tool"]["setuptools"]["packages"]) == found
    assert set(FOLDERS.values()) <= found


def test_every_module_lies_in_a_declared_package():
    packages = set(declared()["tool"]["setuptools"]["packages"])
    assert [str(module.path) for module in modules() if module.package not in packages] == []


def test_every_package_maps_to_its_folder():
    packages = {module.name: module.path for module in modules() if module.package == module.name}
    mapped = declared()["tool"]["setuptools"]["package-dir"]
    expected = {name: path.parent.relative_to(ROOT).as_posix() for name, path in packages.items()}
    top_level = {name: expected[name] for name in FOLDERS.values()}
    assert mapped == top_level


def test_no_module_is_named_like_a_dependency():
    taken = {"click", "jinja2", "matplotlib", "numpy", "onnx", "onnxruntime", "optimum", "pandas"}
    taken |= {"rich", "safetensors", "scipy", "sklearn", "tokenizers", "torch", "transformers"}
    assert [module.name for module in modules() if module.path.stem in taken] == []


def test_no_conftest_or_init_stands_at_the_root():
    assert [name for name in ("conftest.py", "__init__.py") if (ROOT / name).exists()] == []


@pytest.fixture(scope="module")
def wheel_names(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Names of the files in a wheel, built from a copy of the sources and without the network."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for folder in FOLDERS:
        shutil.copytree(
            ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__")
        )
    built = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", "dist", "."],
        cwd=source,
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    (wheel,) = (source / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def test_wheel_holds_only_tcompress_at_the_top(wheel_names: list[str]):
    version = declared()["project"]["version"]
    top_level = {name.split("/")[0] for name in wheel_names}
    assert top_level == {"tcompress", f"tcompress-{version}.dist-info"}


def test_wheel_holds_every_module_and_data_file(wheel_names: list[str]):
    expected = {
        f"{FOLDERS[module.folder].replace('.', '/')}"
        f"/{module.path.relative_to(ROOT / module.folder).as_posix()}"
        for module in modules()
    }
    templates = (ROOT / "evaluate" / "reporting" / "templates").glob("*")
    expected |= {f"tcompress/evaluate/reporting/templates/{path.name}" for path in templates}
    expected.add("tcompress/py.typed")
    assert expected - set(wheel_names) == set()


def test_every_module_imports_and_brings_no_bare_folder():
    # `__main__` runs the command line when it is imported.
    names = [module.name for module in modules() if module.path.stem != "__main__"]
    program = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(name)\n"
        "sys.exit(' '.join({'compress', 'export', 'evaluate'} & set(sys.modules)) or None)\n"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", program, *names],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("module", [pytest.param(found, id=found.name) for found in modules()])
def test_imports_point_one_way(module: Module):
    source = module.path.read_text(encoding="utf-8")
    broken = [
        f"{module.path.relative_to(ROOT)}:{found.line}: {rule}: {found.target}"
        for found in imports_in(source, module.package)
        if (rule := broken_rule(module, found))
    ]
    assert broken == []


@pytest.mark.parametrize(
    ("name", "source", "allowed"),
    [
        pytest.param("tcompress.errors", "import numpy", True, id="other project"),
        pytest.param("tcompress.data", "from .errors import DataError", True, id="own folder"),
        pytest.param(
            "tcompress.data", "from tcompress.errors import E", False, id="own folder absolutely"
        ),
        pytest.param("tcompress.data", "from .compress import cost", False, id="noun to stage"),
        pytest.param(
            "tcompress.data",
            "def load():\n    from tcompress.compress.cost import macs",
            False,
            id="noun to stage lazily",
        ),
        pytest.param(
            "tcompress.cli", "import tcompress.compress.prune_command", False, id="cli at load"
        ),
        pytest.param(
            "tcompress.cli",
            "def get():\n    import_module('tcompress.compress.prune_command')",
            True,
            id="cli lazily",
        ),
        pytest.param("tcompress.export.parity", "from .program import f", True, id="sibling"),
        pytest.param(
            "tcompress.export.parity", "from ..errors import E", False, id="relative across"
        ),
        pytest.param(
            "tcompress.export.parity", "from tcompress.compress import cost", True, id="downwards"
        ),
        pytest.param(
            "tcompress.export.parity", "from tcompress import evaluate", False, id="upwards"
        ),
        pytest.param(
            "tcompress.compress.cost", "from tcompress.cli import main", False, id="stage to cli"
        ),
    ],
)
def test_the_import_rules_tell_right_from_wrong(name: str, source: str, allowed: bool):
    parts = name.split(".")
    folder = folder_of(name)
    assert folder is not None
    module = Module(ROOT / f"{parts[-1]}.py", folder, name)
    rules = [broken_rule(module, found) for found in imports_in(source, module.package)]
    assert rules, "the source must import something"
    assert all(rule is None for rule in rules) is allowed
