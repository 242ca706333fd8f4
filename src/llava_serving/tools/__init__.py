"""The commands of `llava-serving`: serve, score, playground, batch, batch split, batch collect, bench, merge and check.

Each file is one command with its arguments, messages and exit status, except cli.py, which lists the commands, and
resumable.py, which two commands share. No other room imports this one.
"""
