"""The one exception tree of tcompress.

::

    TcompressError
    ├── RequestError            what was asked for cannot be done as it was typed
    │   ├── WorkspaceError      no workspace, or a workspace that cannot be used
    │   └── OutputExistsError   the output is already there
    ├── InputError              a file, or a value in it, is bad or unsafe
    │   ├── ModelError          a model directory
    │   ├── DataError           a data file
    │   ├── ArtifactError       a directory that tcompress wrote
    │   └── CalibrationError    calibration gave no usable numbers
    ├── MachineError            the machine lacks something
    │   ├── MissingExtraError   an optional dependency
    │   ├── DeviceError         a GPU
    │   └── StorageError        disk space, permissions
    ├── ExportError             a file could not be written in that format
    │   └── ParityError         the exported file does not compute what its source computes
    └── MeasurementError        an engine process failed while it was measured

Library code raises from this tree. Only the top of the command line turns it into exit codes.
"""


class TcompressError(Exception):
    """Base of every error that tcompress raises on purpose; its text is one actionable line."""


class RequestError(TcompressError):
    """What was asked for cannot be done as it was typed."""


class WorkspaceError(RequestError):
    """There is no workspace where one is needed, or it cannot be used."""


class OutputExistsError(RequestError):
    """The output is already there and may not be replaced."""


class InputError(TcompressError):
    """A file, or a value in it, is bad or unsafe."""


class ModelError(InputError):
    """A model directory cannot be opened or is not an encoder that tcompress knows."""


class DataError(InputError):
    """A data file is missing, empty or does not fit the model."""


class ArtifactError(InputError):
    """A directory that tcompress wrote is damaged or of another kind than needed."""


class CalibrationError(InputError):
    """Calibration gave no usable numbers: no examples, or a value that is not finite."""


class MachineError(TcompressError):
    """The machine lacks something that the command needs."""


class MissingExtraError(MachineError):
    """An optional dependency is not installed.

    Args:
        extra: Name of the tcompress extra that installs it.
        purpose: What it is needed for, as the start of the message.
    """

    def __init__(self, extra: str, purpose: str) -> None:
        super().__init__(f'{purpose} needs an extra. Install it: pip install "tcompress[{extra}]"')


class DeviceError(MachineError):
    """The asked-for device is not there."""


class StorageError(MachineError):
    """A file could not be written or read for a reason outside tcompress."""


class ExportError(TcompressError):
    """The encoder could not be written in that format."""


class ParityError(ExportError):
    """The exported file does not compute what its source computes."""


class MeasurementError(TcompressError):
    """An engine process failed while it was measured."""
