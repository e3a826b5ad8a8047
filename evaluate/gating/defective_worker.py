"""An engine process whose inputs can be damaged on purpose.

It runs as `python -m tcompress.evaluate.gating.defective_worker`, started by `DefectiveEngine`.
Nothing heavy may be imported at the top of this module.
"""

from typing import TYPE_CHECKING, Any, ClassVar

from tcompress.worker_process import serve

from ..engine_process import EngineProcess
from ..worker import Worker

if TYPE_CHECKING:
    from tcompress.preprocessing import Batch


class DefectiveWorker(Worker):
    """A worker that damages its batches once it was told to."""

    def seed(self, defect: str) -> bool:
        """Damage every batch from now on.

        Args:
            defect: Name of a defect of inputs.

        Returns:
            Whether the model has the inputs for that; else nothing is damaged.
        """
        from .defects import damage_inputs, fits_inputs

        predict, preprocessor = self._predict, self._preprocessor
        assert predict is not None, "asked before the artifact was opened"
        assert preprocessor is not None, "asked before the artifact was opened"
        if not fits_inputs(defect, preprocessor.random_batch(1, 2, 0)):
            return False

        def damaged(batch: "Batch") -> Any:
            return predict(damage_inputs(defect, batch))

        self._predict = damaged
        return True


class DefectiveEngine(EngineProcess):
    """An engine whose inputs can be damaged; otherwise as `EngineProcess`."""

    program: ClassVar[str] = "tcompress.evaluate.gating.defective_worker"

    def seed(self, defect: str) -> bool:
        """Damage every batch from now on; False where the model lacks the inputs for that.

        Args:
            defect: Name of a defect of inputs.
        """
        return bool(self.ask("seed", defect=defect))


def main() -> None:
    """Serve one artifact."""
    serve(DefectiveWorker())


if __name__ == "__main__":
    main()
