"""Moves an application off the old model and back: scan, plan, apply, roll back, finish."""
