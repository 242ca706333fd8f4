"""The paths that the service answers. OpenAI's clients append theirs to a base URL of the user's choice."""

SCORE = "/score"
CHAT_COMPLETIONS = ("/v1/chat/completions", "/chat/completions")
COMPLETIONS = ("/v1/completions",)
MODELS = "/v1/models"
INFO = "/info"
