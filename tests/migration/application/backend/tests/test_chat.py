from unittest.mock import patch

IMPORT = "from llama_cpp import Llama"


def test_chat(monkeypatch):
    # import llama_cpp
    monkeypatch.setenv("SAIGA_N_CTX", "1024")
    with patch("app.services.enhanced_rag_service.saiga_service"):
        assert "llama_cpp" in IMPORT


def test_text():
    assert "SAIGA_N_CTX" in "SAIGA_N_CTX=1"
