"""`vistrald frameworks`: which framework can serve the 24B model on this host, by trial.

Pure: shape.py, needs.py (memory), scaling.py (rates), verdict.py, report.py. Tried for real:
weights.py (one model in every framework's form), environment.py (throw-away venvs), trials/ (load,
answer, time), survey.py (all of it in order).
"""
