"""Пересказ документов: модель и то, что работает без неё."""
from llama_cpp import Llama as Model


def first_sentence(text):
    return text.split(".")[0]


def summarise(text):
    return Model(model_path="/opt/models/saiga.gguf")(text)
