import json

import pytest
from click.testing import CliRunner, Result

from tcompress.cli import cli
from tcompress.evaluate.doctor_command import not_faster
from tcompress.evaluate.noise_floor import measure_noise
from tcompress.evaluate.product_rates import ProductRate, _rate

FEATURES = {"avx512_vnni": True, "avx512_bf16": True}
MACHINE = {"cpu_features": FEATURES, "gpu": "one", "cpus_usable": 8}


def doctor(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["doctor", "--quiet", *arguments])


def test_quick_doctor_times_nothing() -> None:
    document = json.loads(doctor("--quick", "--json").stdout)
    assert (document["schema_version"], document["products"], document["noise_floor"]) == (
        1,
        [],
        None,
    )
    assert set(document["fast"]) == {"int8 on the CPU", "bf16 training on the CPU", "GPU"}
    assert document["machine"]["versions"]["torch"] in doctor("--quick").stdout


@pytest.mark.slow
def test_doctor_times_every_format_and_the_noise() -> None:
    found = doctor("--noise-s", "1", "--json")
    assert found.exit_code == 0, found.output
    document = json.loads(found.stdout)
    rates = {(r["engine"], r["precision"]): r["gmacs_per_s"] for r in document["products"]}
    assert set(rates) == {
        ("onnxruntime", "fp32"),
        ("onnxruntime", "int8"),
        ("pytorch", "fp32"),
        ("pytorch", "bf16"),
        ("pytorch", "fp16"),
    }
    assert all(0.01 < rate < 1e5 for rate in rates.values())
    noise = document["noise_floor"]
    assert noise["blocks"] >= 1
    assert noise["low"] <= noise["value"] <= noise["high"]


def test_products_and_noise_are_timed_in_processes() -> None:
    assert 0.01 < _rate("onnxruntime", "int8", 1).gmacs_per_s < 1e5
    noise = measure_noise(0.2, threads=1).to_json()
    assert noise["low"] <= noise["value"] <= noise["high"]


def test_a_format_slower_than_fp32_is_named_with_its_rate() -> None:
    rates = [
        ProductRate("pytorch", "fp32", 50.0),
        ProductRate("pytorch", "bf16", 150.0),
        ProductRate("pytorch", "fp16", 10.0),
    ]
    assert not_faster(MACHINE, rates) == [
        "fp16 in pytorch: its products run at 0.20 times the rate of fp32"
    ]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"cpu_features": {"avx512_bf16": True}}, "int8 on this CPU without dot products"),
        ({"cpu_features": {"avx512_vnni": True}}, "finetune uses fp32"),
        ({"gpu": None}, "torch finds no GPU"),
        ({"cpus_usable": 1}, "more threads"),
    ],
)
def test_what_the_machine_lacks_is_named(change: dict[str, object], told: str) -> None:
    [line] = not_faster(MACHINE | change, [])
    assert told in line
