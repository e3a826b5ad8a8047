"""Tests on both lines of transformers, each in an environment of its own: `pipx run nox`."""

import shlex
from pathlib import Path

import nox

nox.options.reuse_existing_virtualenvs = True


@nox.session(name="transformers-5")
def transformers_5(session: nox.Session) -> None:
    """Install transformers 5 and run what looks at it."""
    session.run("make", "install", f"VENV={_home(session)}", external=True)
    _test(session, "transformers-4")


@nox.session(name="transformers-4")
def transformers_4(session: nox.Session) -> None:
    """Install transformers 4.57 and optimum-onnx, and run what looks at them."""
    session.run("make", "install-transformers4", f"VENV={_home(session)}", external=True)
    _test(session, "transformers-5")


def _test(session: nox.Session, other: str) -> None:
    """Run a line's tests; checkpoints cross where the other line's session has been."""
    python = _home(session).parent / other / "bin" / "python"
    crossing = [f"OTHER={python}"] if python.exists() else []
    words = ["test-line", f"VENV={_home(session)}", *crossing]
    session.run("make", *words, f"PYTEST_ARGS={shlex.join(session.posargs)}", external=True)


def _home(session: nox.Session) -> Path:
    return Path(session.virtualenv.location).absolute()
