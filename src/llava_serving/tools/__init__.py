"""The commands of `llava-serving`: serve, score, batch, bench, merge and check.

Each file is one command: its arguments, its messages and its exit status. No other room imports this one.
"""
