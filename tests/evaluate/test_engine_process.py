import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from tcompress.data import Examples
from tcompress.encoder import open_encoder
from tcompress.errors import ArtifactError, DeviceError, MeasurementError
from tcompress.evaluate.accuracy import predict
from tcompress.evaluate.engine_process import EngineProcess

pytestmark = pytest.mark.fresh_engines

WORDS = ("good", "bad", "film", "not", "very", "a")


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("bert")
    vocab = {word: i for i, word in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS))}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]"}
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        sep_token="[SEP]",
        model_max_length=16,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        **special,
    ).save_pretrained(directory)
    config = BertConfig(
        vocab_size=len(vocab),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=32,
        max_position_embeddings=16,
    )
    BertForSequenceClassification(config).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def engine(bert: Path) -> Iterator[EngineProcess]:
    with EngineProcess(bert, name="bert", threads=1) as process:
        yield process


def test_texts_are_answered_as_in_this_process_and_truncation_is_counted(
    engine: EngineProcess, bert: Path
):
    texts = ("good film", "not very good", "a bad film", "very " * 40)
    examples = Examples("test", ids=tuple("0123"), texts=texts)
    found = predict(engine, examples)
    encoder = open_encoder(bert)
    expected = encoder.predict(encoder.preprocessor.encode(examples).collate(range(4)))
    np.testing.assert_allclose(found.logits, expected, atol=1e-5)
    assert found.truncated == 1


def test_turn_gives_one_duration_per_measured_call(engine: EngineProcess):
    engine.fix(batch=2, tokens=8)
    samples = engine.turn(calls=5, warmup=2)
    assert len(samples) == 5
    assert min(samples) > 0
    assert engine.memory_peak_bytes() > 10**7
    assert engine.gpu_memory_peak_bytes() is None


def test_process_sleeps_between_answers_on_as_many_cpus_as_threads(engine: EngineProcess):
    process = psutil.Process(engine.pid)
    assert engine.info.threads == 1
    assert process.status() == psutil.STATUS_STOPPED
    if hasattr(process, "cpu_affinity"):
        assert len(process.cpu_affinity()) == 1


def test_gpu_that_is_not_there_is_a_device_error(source: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with (
        EngineProcess(source, device="cuda") as engine,
        pytest.raises(DeviceError, match="'cuda' was asked for"),
    ):
        _ = engine.info


def test_death_of_the_process_names_the_artifact_and_the_process_is_gone(source: Path):
    with EngineProcess(source, name="prune") as engine:
        _ = engine.info
        os.kill(engine.pid, signal.SIGKILL)
        with pytest.raises(MeasurementError, match="prune: the engine process ended by SIGKILL"):
            engine.fix(batch=1, tokens=4)
    assert not psutil.pid_exists(engine.pid)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel has to know parent-death signals")
def test_sleeping_process_does_not_outlive_a_killed_parent(source: Path):
    program = (
        "import os, sys; from pathlib import Path\n"
        "from tcompress.evaluate.engine_process import EngineProcess\n"
        "engine = EngineProcess(Path(sys.argv[1])); engine.info\n"
        "print(engine.pid, flush=True); os.kill(os.getpid(), 9)"
    )
    parent = subprocess.run([sys.executable, "-c", program, source], capture_output=True, text=True)
    pid = int(parent.stdout)
    gone = not psutil.pid_exists(pid)
    if not gone:
        gone = not psutil.wait_procs([psutil.Process(pid)], timeout=10)[1]
    assert gone


def test_an_engine_that_dies_as_it_opens_a_file_is_a_bad_file(source: Path):
    with EngineProcess(source, name="source") as engine:
        os.kill(engine.pid, signal.SIGSEGV)
        with pytest.raises(ArtifactError, match=r"source: .* by SIGSEGV as it opened the file"):
            assert engine.info
