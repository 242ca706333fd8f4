"""The profile of the engine's steps in `llava-serving bench --profile`: a service in this process, and the time that
each part of its steps takes. The service itself does not know this room, so that a profile costs it nothing."""
