"""PyTorch implementations that ours is compared with, each in an environment of its own.

`environment.py` makes those environments from `requirements-NAME.txt` and runs scripts in them. The
scripts and `exchange.py`, their side of the conversation, import nothing of this project.
"""
