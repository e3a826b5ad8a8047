"""The data's label names beside the model's."""

from collections.abc import Iterable

from ..errors import DataError


def label_index(labels: tuple[str, ...], found: Iterable[str], origin: str) -> dict[str, int]:
    """Map label names of the data to the model's outputs, by name and never by order.

    Where the model only has placeholder names (`LABEL_0`, ...), the data's `0`, `1`, ... mean
    those.

    Args:
        labels: The model's names.
        found: The data's names.
        origin: Where the data came from.

    Returns:
        An output for each name that may occur.

    Raises:
        DataError: If the model does not know a name.
    """
    index = {name: i for i, name in enumerate(labels)}
    if all(name == f"LABEL_{i}" for i, name in enumerate(labels)):
        index |= {str(i): i for i in range(len(labels))}
    unknown = sorted(set(found) - set(index))
    if not unknown:
        return index
    if all(name.isdecimal() and int(name) < len(labels) for name in unknown):
        numbers = sorted(unknown, key=int)
        proposal = ",".join(f"{number}={labels[int(number)]}" for number in numbers)
        msg = (
            f"{origin}: its labels are numbers ({', '.join(numbers)}), the model's are named "
            f"({', '.join(labels)}); say which is which, as in --label-map {proposal}"
        )
        raise DataError(msg)
    msg = (
        f"{origin}: label {unknown[0]!r} is not known to the model, whose labels are: "
        f"{', '.join(labels)}; rename it with --label-map"
    )
    raise DataError(msg)
