"""What a person types: `llava-serving serve`, `score`, `batch`, `bench`, `merge` and `check`.

Each file is one command: its arguments, its messages and its exit status. Nothing else imports this room.
"""
