"""The `doctor` command: what this machine can do, and what will therefore not be faster."""

from functools import partial
from typing import TYPE_CHECKING, Any

import click

from tcompress.options import CONTEXT, Common, common_options

if TYPE_CHECKING:
    from tcompress.console import Console

    from .measurement import Speedup
    from .product_rates import ProductRate

_ENGINE_ADVICE = "ONNX Runtime for single texts, OpenVINO for even batches"
# Products that are faster by less than this are not worth another format.
_WORTH_IT = 1.1
_CERTAIN = 0.95


@click.command(context_settings=CONTEXT, short_help="Say what is fast on this machine.")
@click.option("--quick", is_flag=True, help="Leave out what has to be timed.")
@click.option(
    "--noise-s",
    type=click.FloatRange(0, min_open=True),
    default=10.0,
    help="Seconds to time one encoder against itself.",
)
@partial(common_options, floors=False)
def doctor(quick: bool, noise_s: float, common: Common) -> None:
    """Say what this machine has, and what will be fast here and what will not.

    Matrix products are timed in every number format, and one encoder is timed against itself:
    differences below that noise say nothing on this machine.

    \b
    Example:
      tcompress doctor
      tcompress doctor --quick --json
    """
    from tcompress.machine import describe_machine

    console, machine = common.console, describe_machine()
    rates: list[ProductRate] = []
    noise: Speedup | None = None
    if not quick:
        from .noise_floor import measure_noise
        from .product_rates import product_rates

        with console.step("doctor: timing matrix products"):
            rates = product_rates()
        with console.step(f"doctor: timing an encoder against itself ({noise_s:g} s)"):
            noise = measure_noise(noise_s, seed=common.seed or 0)
    document = _document(machine, rates, noise)
    if console.as_json:
        console.show_json(document)
    else:
        _show(console, document)


def _document(
    machine: dict[str, Any], rates: "list[ProductRate]", noise: "Speedup | None"
) -> dict[str, Any]:
    from dataclasses import asdict

    from tcompress.floors import faults, floors
    from tcompress.machine import has_fast_bf16, has_int8_dot

    features, held = machine["cpu_features"], floors()
    return {
        "schema_version": 1,
        "machine": machine,
        "floors": {
            "needs": {floor.name: floor.needs for floor in held},
            "faults": faults(held),
        },
        "fast": {
            "int8 on the CPU": has_int8_dot(features),
            "bf16 training on the CPU": has_fast_bf16(features),
            "GPU": machine["gpu"] is not None,
        },
        "products": [asdict(rate) for rate in rates],
        "noise_floor": None if noise is None else noise.to_json(),
        "not_faster": not_faster(machine, rates),
    }


def not_faster(machine: dict[str, Any], rates: "list[ProductRate]") -> list[str]:
    """Say what will not be faster on a machine, and what to do instead.

    Args:
        machine: From `describe_machine`.
        rates: Measured rates of products; where there are none, the instruction sets have to do.

    Returns:
        One line each.
    """
    from tcompress.machine import has_fast_bf16, has_int8_dot

    lines = []
    features = machine["cpu_features"]
    if not has_int8_dot(features):
        lines.append(
            "int8 on this CPU without dot products (VNNI): weights are kept to 7 bits, and "
            "evaluate says whether it is faster at all"
        )
    if not rates and not has_fast_bf16(features):
        lines.append("bf16 on this CPU, which has no bf16 products: finetune uses fp32")
    lines += _slow_formats(rates)
    if machine["gpu"] is None:
        lines.append("--device cuda, as torch finds no GPU: evaluate measures the CPU only")
    if machine["cpus_usable"] == 1:
        lines.append("more threads: one CPU may be used")
    return lines


def _slow_formats(rates: "list[ProductRate]") -> list[str]:
    known = {(rate.engine, rate.precision): rate.gmacs_per_s for rate in rates}
    lines = []
    for (engine, precision), rate in known.items():
        ratio = rate / known[engine, "fp32"]
        if precision != "fp32" and ratio < _WORTH_IT:
            lines.append(
                f"{precision} in {engine}: its products run at {ratio:.2f} times the rate of fp32"
            )
    return lines


def _show(console: "Console", document: dict[str, Any]) -> None:
    machine = document["machine"]
    features = [name for name, has in machine["cpu_features"].items() if has]
    rows = [
        ("CPU", machine["cpu"]),
        ("CPUs usable", f"{machine['cpus_usable']} (physical: {machine['cpus_physical']})"),
        ("memory", f"{machine['memory_bytes'] / 2**30:.0f} GiB"),
        ("instruction sets", ", ".join(features) or "-"),
        ("GPU", machine["gpu"] or "no"),
        ("OpenVINO", _openvino_words(machine["versions"])),
        ("engine for int8", _ENGINE_ADVICE),
        ("floors", _floors_words(document["floors"])),
        *machine["versions"].items(),
    ]
    for name, value in rows:
        console.show(f"{name:<18}{value}")
    if document["products"]:
        _show_products(console, document["products"])
    if document["noise_floor"] is not None:
        console.show(*_noise_words(document["noise_floor"]))
    if document["not_faster"]:
        console.show("What will not be faster here:")
        for line in document["not_faster"]:
            console.show(f"- {line}")


def _show_products(console: "Console", products: list[dict[str, Any]]) -> None:
    fp32 = {rate["engine"]: rate["gmacs_per_s"] for rate in products if rate["precision"] == "fp32"}
    fastest = max(rate["gmacs_per_s"] for rate in products)
    console.table(
        ("products in", "format", "GMAC/s", "of fp32", ""),
        [
            (
                rate["engine"],
                rate["precision"],
                f"{rate['gmacs_per_s']:.0f}",
                f"{rate['gmacs_per_s'] / fp32[rate['engine']]:.2f}",
                console.bar(rate["gmacs_per_s"] / fastest),
            )
            for rate in products
        ],
    )


def _noise_words(noise: dict[str, Any]) -> list[str]:
    if noise["confidence"] < _CERTAIN:
        return ["noise floor: not known; there were too few rounds, give --noise-s more"]
    width = max(abs(noise["high"] - 1), abs(1 - noise["low"]))
    return [
        f"noise floor: an encoder came out {noise['low'] - 1:+.1%} to {noise['high'] - 1:+.1%} "
        f"faster than itself",
        f"             a difference below {width:.1%} says nothing here",
    ]


def _floors_words(floors: dict[str, Any]) -> str:
    return "; ".join(floors["faults"]) or f"hold for {', '.join(floors['needs'])}"


def _openvino_words(versions: dict[str, str]) -> str:
    if {"openvino", "nncf"} <= set(versions):
        return "yes: export --format openvino works here"
    return 'no: not installed; pip install "tcompress[openvino]"'
