"""The page: its components, and which handler each event calls."""

from typing import Any

import gradio as gr

from .examples import DEMO_MODEL, Example, available_examples
from .handlers import Handlers
from .options import NO_TEMPLATE

TITLE = "LLaVA playground"
TEMPLATES = [("the model's own", ""), ("v0", "v0"), ("v1", "v1"), ("none: continue the text", NO_TEMPLATE)]
# What gradio lacks: a key that stops an answer, and what screen readers need to know about images, notes and examples.
HEAD = """<script>
addEventListener("keydown", (event) => {
  if (event.key === "Escape") document.querySelector(".stop-button")?.click();
});
new MutationObserver(() => {
  for (const image of document.querySelectorAll('#chat .image-frame img[alt=""]')) image.alt = "attached image";
  for (const arrow of document.querySelectorAll("#chat .arrow button:not([inert])")) arrow.inert = true;
  document.querySelector("#chat .examples[role]")?.removeAttribute("role");
}).observe(document, { childList: true, subtree: true });
</script>"""
# gradio shows images as wide as a message, and a button that would upload a conversation to Hugging Face.
CSS = """
#chat .image-frame img { max-height: 12rem; width: auto; }
#chat .message:has(.thought-group) { padding: 0; border: 0; background: none; }
#chat .icon-button-wrapper:not(:has(button:not([aria-label="Share"]))) { display: none; }
#chat .message-row:has(.thought-group) + .message-buttons .icon-button-wrapper:not(:has([aria-label="Retry"])) {
  display: none;
}
#chat .message-row:has(.thought-group) { margin-top: 0; }
#chat button[aria-label="Share"] { display: none !important; }
#chat .placeholder-content { padding-top: 2.5rem; }
#chat .placeholder { max-width: 46rem; padding: 0 1rem; }
@media (max-width: 640px) {
  #chat { height: 75vh !important; }
  #chat .examples { grid-template-columns: 1fr 1fr; padding: 0; }
  #chat .image-frame img { max-height: 9rem; }
}
"""


def theme() -> Any:
    """Returns gradio's theme with the system's fonts, and with more contrast in small texts."""
    base = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    return base.set(body_text_color_subdued="*neutral_600", input_placeholder_color="*neutral_500")


def build_page(handlers: Handlers) -> Any:
    """Returns the page as gradio's Blocks."""
    with gr.Blocks(title=TITLE, fill_height=True, analytics_enabled=False) as page:
        gr.Markdown(f"# {TITLE}\nAnswers come from `{handlers.target.url}`")
        with gr.Row(scale=1):
            with gr.Column(scale=3, min_width=320):
                chat, textbox = _chat()
            with gr.Column(scale=1, min_width=300):
                options = _options()
                samples, upload = _conversation_tools()
        _connect(handlers, chat, textbox, options, samples, upload)
    return page


def _chat() -> tuple[Any, Any]:
    chat = gr.Chatbot(
        label="Conversation",
        elem_id="chat",
        height="60vh",
        scale=1,
        buttons=["copy", "copy_all"],
        editable="user",
        group_consecutive_messages=False,  # gradio 6.31 cannot edit the text of a group with images
        feedback_options=None,
        allow_tags=False,
        allow_file_downloads=False,
        placeholder=f"Ask a question, or choose an example.\n\n{DEMO_MODEL}",
        examples=[_example_message(example) for example in available_examples()],
    )
    textbox = gr.MultimodalTextbox(
        label="Question",
        show_label=False,
        placeholder="Ask about images: attach, drop or paste them here",
        file_count="multiple",
        file_types=["image"],
        max_plain_text_length=100_000,
        autofocus=True,
    )
    return chat, textbox


def _options() -> list[Any]:
    """Returns the components of the options, in the order of the fields of Options."""
    with gr.Accordion("Parameters", open=True):
        return [
            gr.Textbox(label="System message", placeholder="the template's own", lines=1),
            gr.Slider(0, 2, value=0, step=0.05, label="Temperature", info="0 always takes the likeliest token"),
            gr.Slider(0.05, 1, value=1, step=0.05, label="Top-p"),
            gr.Textbox(label="Longest answer in tokens", placeholder="the service's default"),
            gr.Textbox(label="Seed", placeholder="a new one each time"),
            gr.Radio(TEMPLATES, value="", label="Template"),
        ]


def _conversation_tools() -> tuple[list[Any], Any]:
    """Returns the components for the last request as code, with the export at their end, and the import."""
    with gr.Accordion("Copy the last request", open=False):
        gr.Markdown("The key is not part of it.")
        languages = {"curl": "shell", "Python": "python", "JSON": "json"}
        samples = []
        for name, language in languages.items():
            with gr.Tab(name):
                samples.append(
                    gr.Code(label=name, language=language, interactive=False, max_lines=20, show_line_numbers=False)
                )
    with gr.Row():
        samples.append(gr.DownloadButton("Export", size="sm", interactive=False, min_width=120))
        upload = gr.UploadButton("Import", size="sm", file_types=[".json"], min_width=120)
    return samples, upload


def _example_message(example: Example) -> dict[str, Any]:
    files = [] if example.path is None else [str(example.path)]
    return {"text": example.question, "files": files}


def _connect(handlers: Handlers, chat: Any, textbox: Any, options: list[Any], samples: list[Any], upload: Any) -> None:
    """Connects events with handlers."""
    update = [chat, textbox]
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "concurrency_limit": None}
    quick = quiet | {"queue": False}
    asked = [
        textbox.submit(handlers.submit, [textbox, chat], update, **quiet),
        chat.example_select(handlers.submit_example, None, update, **quiet),
        chat.retry(handlers.regenerate, [chat], update, **quiet),
        chat.edit(handlers.resend, [chat], update, **quiet),
    ]
    answered = [event.success(handlers.answer, [chat, *options], update, **quiet) for event in asked]
    stopped = textbox.stop(None, cancels=answered).then(handlers.stop, [chat], update, **quick)
    cleared = chat.clear(None, cancels=answered).then(handlers.stop, [chat], update, **quick)
    undone = chat.undo(handlers.undo, [chat], update, **quiet)
    loaded = upload.upload(handlers.load, [upload], [chat, *options], **quiet)
    for event in (*answered, stopped, cleared, undone, loaded):
        event.then(handlers.samples, [chat, *options], samples, **quick)
    for option in options:
        option.change(handlers.samples, [chat, *options], samples, **quick)
