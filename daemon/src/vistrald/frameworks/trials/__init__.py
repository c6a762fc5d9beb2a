"""What runs in processes of their own: one framework loads the model, answers, and is timed.

These files need only the framework that they try: they are copied out of the package and run by the
Python of a throw-away environment.
"""
