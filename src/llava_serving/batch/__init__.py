"""Files of requests through the engine, all at once: what the batch endpoint and `llava-serving batch` share."""
