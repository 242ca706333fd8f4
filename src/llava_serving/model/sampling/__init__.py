"""Rows of logits to one token each, every row with the parameters of its own sequence.

The host plans a step from the sequences' parameters, and the device samples all rows at once. The host reads the tokens
later. Between planning and reading, the host never waits for the device: no shape and no branch depends on the values
of a tensor. The one exception, `top_k_top_p.shortlist`, runs only where the host is the device.
"""
