#!/usr/bin/env python3
from llama_cpp import Llama


def main():
    print(Llama(model_path="saiga.gguf")("Привет"))


if __name__ == "__main__":
    main()
