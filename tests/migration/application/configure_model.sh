#!/bin/bash
echo "SAIGA_MODEL_PATH=$HOME/llama.cpp/models/saiga.gguf" >> .env
