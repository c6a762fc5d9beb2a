#!/bin/bash
wget https://example.org/saiga_8b.gguf -P models
