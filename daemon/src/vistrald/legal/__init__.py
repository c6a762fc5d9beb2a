"""Prompts for legal questions; their texts lie beside the code, one file each."""
