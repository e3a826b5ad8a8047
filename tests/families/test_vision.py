import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoModelForImageClassification,
    DeiTConfig,
    DeiTForImageClassificationWithTeacher,
    ViTConfig,
    ViTModel,
)

from tcompress.compress.distillation import compared_tokens
from tcompress.compress.pruning import prune_
from tcompress.data import Columns, Examples, read_examples
from tcompress.encoder import Encoder, open_encoder
from tcompress.errors import DataError, ModelError
from tcompress.export.exporting import write_export
from tcompress.plain import plain

from .family_fixture import ANSWERS, INITIALIZER, LABELS, SIZES, FamilyFixture, stir_
from .fixtures import FAMILIES
from .image_fixture import IMAGES, SIZE
from .plans import uneven

PATCHES = ("vit", "deit", "audio-spectrogram-transformer")
RNG = np.random.default_rng(0)


@pytest.fixture(params=PATCHES)
def family(request: pytest.FixtureRequest) -> FamilyFixture:
    found: FamilyFixture = FAMILIES[request.param]
    return found


@pytest.fixture
def vit(directories: Callable[[FamilyFixture], Path]) -> Encoder:
    return open_encoder(directories(FAMILIES["vit"]))


def images(inputs: np.ndarray) -> Examples:
    return Examples("images.npz", tuple(map(str, range(len(inputs)))), inputs=inputs)


def test_macs_count_every_token_that_the_position_table_counts(encoder: Encoder) -> None:
    tokens = encoder.preprocessor.fixed_tokens
    assert tokens is not None
    assert tokens == encoder.anatomy.embedding.max_tokens
    per_layer = 4 * tokens * 32 * 32 + 2 * tokens**2 * 32 + 2 * tokens * 32 * 48
    assert encoder.anatomy.macs(tokens) == 3 * per_layer


def test_the_plain_encoder_answers_as_the_model(encoder: Encoder) -> None:
    module = plain(encoder)
    for size in (1, 3):
        inputs = encoder.example_tensors(size)
        with torch.no_grad():
            np.testing.assert_allclose(
                module(*inputs.values()), encoder.model(**inputs).logits, rtol=0, atol=1e-5
            )


def test_only_the_tokens_that_the_head_reads_are_compared_at_the_end(encoder: Encoder) -> None:
    batch = encoder.preprocessor.random_batch(2, 1)
    read = 2 if encoder.anatomy.family == "audio-spectrogram-transformer" else 1
    tokens = encoder.preprocessor.fixed_tokens
    compared = compared_tokens(encoder.anatomy, batch)
    assert compared.sum((1, 2)).tolist() == [2 * tokens, 2 * tokens, 2 * read]


def test_bytes_are_scaled_and_normalized_as_the_model_directory_says(vit: Encoder) -> None:
    pixels = RNG.integers(0, 256, (3, 20, 24, 3), dtype=np.uint8)
    found = vit.preprocessor.encode(images(pixels)).collate([2, 0])["pixel_values"]
    scaled = [Image.fromarray(pixels[i]).resize((SIZE, SIZE), resample=2) for i in (2, 0)]
    expected = np.stack([np.asarray(image, np.float32) for image in scaled]) / 127.5 - 1
    np.testing.assert_allclose(found, expected.transpose(0, 3, 1, 2), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        pytest.param(np.zeros((2, 3, 8, 8), np.float32), r"floats \(examples, 3, 16, 16\)", id="s"),
        pytest.param(np.zeros((2, 3, 16, 16), np.int64), "got int64", id="integers"),
        pytest.param(None, "reads images, the file holds texts", id="texts"),
    ],
)
def test_inputs_that_are_no_images_of_the_model_are_refused(
    vit: Encoder, inputs: np.ndarray | None, message: str
) -> None:
    examples = Examples("data", ("0", "1"), texts=("a", "b"), inputs=inputs)
    with pytest.raises(DataError, match=message):
        vit.preprocessor.encode(examples)


def write_table(directory: Path, *names: str) -> Path:
    rows = [f"{name},{LABELS[i % 2]}" for i, name in enumerate(names)]
    (directory / "photos.csv").write_text("\n".join(["photo,label", *rows]) + "\n")
    return directory / "photos.csv"


def test_a_table_names_images_of_any_size_below_its_directory(vit: Encoder, tmp_path: Path) -> None:
    pixels = RNG.integers(0, 256, (18, 22, 3), dtype=np.uint8)
    (tmp_path / "photos").mkdir()
    Image.fromarray(pixels).save(tmp_path / "photos" / "a.png")
    Image.fromarray(pixels[:, ::-1, 0]).save(tmp_path / "b.png")
    table = write_table(tmp_path, "photos/a.png", "b.png")
    examples = read_examples(table, Columns(image="photo"))
    assert examples.labels == LABELS
    assert len(set(examples.content_digests)) == 2
    found = vit.preprocessor.encode(examples).collate([0, 1])["pixel_values"]
    whole = vit.preprocessor.encode(images(pixels[None])).collate([0])["pixel_values"]
    np.testing.assert_array_equal(found[0], whole[0])
    np.testing.assert_array_equal(found[1, 0], found[1, 2], "a grey image has three equal channels")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        pytest.param("../secret.png", r"names a file outside .*in row 2", id="outside"),
        pytest.param("/etc/hostname", "names a file outside", id="absolute"),
        pytest.param("lost.png", "which is no file", id="missing"),
    ],
)
def test_paths_that_lead_to_no_image_below_the_table_are_refused(
    tmp_path: Path, name: str, message: str
) -> None:
    directory = tmp_path / "data"
    directory.mkdir()
    for path in (tmp_path / "secret.png", directory / "a.png"):
        Image.new("RGB", (4, 4)).save(path)
    with pytest.raises(DataError, match=message):
        read_examples(write_table(directory, "a.png", name), Columns(image="photo"))


def test_a_file_that_is_no_image_is_refused(vit: Encoder, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("no image")
    examples = read_examples(write_table(tmp_path, "a.png"), Columns(image="photo"))
    with pytest.raises(DataError, match=r"a\.png: cannot be read as PNG"):
        vit.preprocessor.encode(examples)


def test_both_heads_of_a_deit_with_a_teacher_answer_as_one(tmp_path: Path) -> None:
    config = DeiTConfig(**SIZES, **ANSWERS, **INITIALIZER, **IMAGES)
    model = DeiTForImageClassificationWithTeacher(config).eval()
    stir_(model)
    model.save_pretrained(tmp_path / "source")
    encoder = open_encoder(tmp_path / "source")
    inputs = encoder.example_tensors(3)
    with torch.no_grad():
        expected = model(**inputs).logits
        for found in (encoder.model(**inputs).logits, plain(encoder)(*inputs.values())):
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    parity = write_export(encoder, "onnx", tmp_path)["parity"]
    assert parity["max_abs_difference"] < 1e-5
    prune_(encoder, uneven(encoder))
    (tmp_path / "pruned").mkdir()
    encoder.save(tmp_path / "pruned")
    again = open_encoder(tmp_path / "pruned", encoder.plan)
    with torch.no_grad():
        pruned = again.model(**inputs).logits
    np.testing.assert_allclose(pruned, encoder.model(**inputs).logits.detach(), rtol=0, atol=1e-6)


def test_bytes_without_a_description_of_the_processor_are_refused(tmp_path: Path) -> None:
    config = ViTConfig(**SIZES, **ANSWERS, **INITIALIZER, **IMAGES)
    AutoModelForImageClassification.from_config(config).save_pretrained(tmp_path)
    encoder = open_encoder(tmp_path)
    with pytest.raises(ModelError, match=r"no preprocessor_config\.json in it"):
        encoder.preprocessor.encode(images(np.zeros((1, 16, 16, 3), np.uint8)))


def test_a_model_without_head_embeds_images(tmp_path: Path) -> None:
    model = ViTModel(ViTConfig(**SIZES, **INITIALIZER, **IMAGES)).eval()
    model.save_pretrained(tmp_path)
    encoder = open_encoder(tmp_path)
    inputs = encoder.example_tensors(2)
    with torch.no_grad():
        expected = model(**inputs).last_hidden_state.mean(1)
        np.testing.assert_allclose(plain(encoder)(*inputs.values()), expected, rtol=0, atol=1e-5)


def test_openvino_runs_images_and_spectrograms(encoder: Encoder, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    assert write_export(encoder, "openvino", tmp_path)["parity"]["max_abs_difference"] < 1e-5


def test_images_of_digits_are_pruned_exported_timed_and_judged(
    directories: Callable[[FamilyFixture], Path],
    tcompress: Callable[..., Any],
    tmp_path: Path,
) -> None:
    from sklearn.datasets import load_digits

    digits = load_digits(n_class=2)
    pixels = np.kron(digits.images[:120] * 15, np.ones((4, 4))).astype(np.uint8)
    data = tmp_path / "digits.npz"
    names = np.array(["bad", "good"])[digits.target[:120]]
    np.savez(data, inputs=pixels[..., None].repeat(3, -1), labels=names)
    workspace = tmp_path / "workspace"

    def run(*words: object) -> dict[str, Any]:
        result = tcompress(*words, "--workspace", workspace, "--json")
        assert result.exit_code == 0, result.output
        document: dict[str, Any] = json.loads(result.stdout)
        return document

    run("init", directories(FAMILIES["vit"]), "--data", data)
    run("prune", "--heads", 0.3, "--neurons", 0.3)
    run("export", "--format", "onnx")
    timing = ("--device", "cpu", "--budget-s", 0.5, "--no-mix", "--batch", 1, "--processes", 1)
    measured = run("evaluate", *timing)["measurements"]
    assert {entry["tokens"] for entry in measured} == {17}
    assert run("gate", "--max-drop", 0.9)["verdict"] == "pass"
