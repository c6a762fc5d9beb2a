# from llama_cpp import Llama
import importlib

llama = importlib.import_module("llama_cpp")


class SaigaService:
    def generate_response(self, prompt):
        return llama.Llama(model_path="saiga.gguf")(prompt)

    def get_stats(self):
        return {}
