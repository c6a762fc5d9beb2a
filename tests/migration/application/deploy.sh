#!/bin/bash
set -e
if [ ! -f models/saiga.gguf ]; then
    ./DOWNLOAD_SAIGA_8B.sh
fi
bash configure_model.sh || exit 1
export SAIGA_N_CTX=${SAIGA_N_CTX:-8192}
export SAIGA_STOP_TOKENS=x
pip install llama-cpp-python==0.2.20
pip install -q fastapi "llama-cpp-python[server]" uvicorn
docker compose up -d
