"""A web page on which a person talks to any endpoint of the service.

This room is a caller: it knows `llava_serving.client` and gradio, which draws the page. It knows no model and no torch.
The endpoint's key or token stays in this process. The browser sees only the page.
"""
