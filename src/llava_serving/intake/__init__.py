"""From the bytes of a request to a ScoreRequest and its pictures as pixels.

Large bodies and large pictures are read by processes of their own. There they hold neither Python's lock nor memory of
the process that generates, and a decoder that crashes takes no answer with it.
"""
