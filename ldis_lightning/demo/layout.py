"""Where things are on the page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import gradio as gr

from ldis_lightning.demo import ready
from ldis_lightning.demo.drawing import BRUSH, OPACITY
from ldis_lightning.demo.editor import MaskEditor
from ldis_lightning.demo.ready import Example
from ldis_lightning.demo.session import Session
from ldis_lightning.meta_architectures import LDISn
from ldis_lightning.pipeline import InContextSegmentationPipeline

EXAMPLES: tuple[tuple[str, Callable[[], Example]], ...] = (
    ("pictures", ready.pictures),
    ("two references", ready.several),
    ("a clip", ready.clip),
)
"""What the buttons of the examples say, and what they load."""
CSS = Path(__file__).with_name("page.css")
SANS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "sans-serif")
MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")
AWAY = "away"
"""Class of what is laid out, but out of sight: Gradio's editor loses a picture that it gets while it appears."""
MOST_STEPS = 50
MOST_GUIDANCE = 15
THRESHOLDS = 2.0
"""Greatest threshold of the logits: channels of the vanilla pseudo-mask differ by at most this."""


@dataclass(frozen=True)
class Parts:
    """The components of the page that do something, or change."""

    session: Any
    chosen: Any
    examples: list[tuple[Any, Callable[[], Example]]]
    showing: Any
    drop_picture: Any
    painting: Any
    editor: Any
    drop_mask: Any
    keep: Any
    discard: Any
    kept: Any
    references: Any
    remove: Any
    drop_queries: Any
    find: Any
    stop: Any
    clear: Any
    status: Any
    results: Any
    movie: Any
    threshold: Any
    steps: Any
    guide_query: Any
    guide_reference: Any
    seed: Any
    download: Any
    file: Any

    def changing(self) -> list[Any]:
        """Those whose values or looks handlers may change."""
        fixed = ("session", "examples", "threshold", "steps", "guide_query", "guide_reference", "seed", "file")
        return [getattr(self, part.name) for part in fields(self) if part.name not in fixed]

    def while_looking(self) -> list[Any]:
        """Those that change while the model works. The editor is none: it would paint its mask anew each time."""
        return [self.results, self.movie, self.status, self.find, self.stop]


def theme() -> Any:
    """Colours and fonts. The fonts are the system's: none is fetched from anywhere."""
    base = gr.themes.Soft(primary_hue="red", neutral_hue="zinc", font=SANS, font_mono=MONO, radius_size="lg")
    return base.set(
        body_text_color_subdued="*neutral_500",  # Soft's own is too faint to read well
        body_text_color_subdued_dark="*neutral_400",
        block_label_background_fill="*neutral_100",
        block_label_background_fill_dark="*neutral_800",
        block_label_text_color="*neutral_600",
        block_label_text_color_dark="*neutral_300",
        block_title_background_fill="transparent",
        block_title_background_fill_dark="transparent",
        block_title_padding="0",
        block_border_width="1px",
        block_border_width_dark="1px",
        button_secondary_background_fill="*neutral_100",
        button_secondary_background_fill_hover="*neutral_200",
        block_title_text_color="*body_text_color",
        block_title_text_color_dark="*body_text_color",
    )


def lay_out(pipe: InContextSegmentationPipeline, many_steps: bool) -> tuple[gr.Blocks, Parts]:
    """The page without what it does.

    Args:
        pipe: whose own steps and guidance the sliders begin with.
        many_steps: whether there are such sliders.
    """
    made: dict[str, Any] = {}
    with gr.Blocks(
        title="Find it by example", analytics_enabled=False, fill_width=True, delete_cache=(60, 3600)
    ) as page:
        made["session"], made["chosen"] = gr.State(Session()), gr.State(None)
        with gr.Row(elem_id="head"):
            gr.HTML(
                "<h1>Find it by example</h1><p>Paint over a thing in one picture. The model finds it in others.</p>"
            )
            with gr.Row(elem_id="examples"):
                made["examples"] = [
                    (gr.Button(f"Example: {name}", size="sm", min_width=90, elem_classes="example"), draw)
                    for name, draw in EXAMPLES
                ]
        with gr.Row(elem_id="columns"):
            with gr.Column(scale=4, min_width=320):
                made |= _left()
            with gr.Column(scale=6, min_width=320):
                made |= _right(pipe, many_steps)
    return page, Parts(**made)


def _left() -> dict[str, Any]:
    made: dict[str, Any] = {}
    gr.HTML(_step(1, "Show what to find", "Drop a picture of the thing, then paint over it."))
    with gr.Column() as made["showing"]:
        made["drop_picture"] = gr.File(
            label="A picture of the thing", show_label=False, height=130, elem_id="drop-picture"
        )
    with gr.Column(elem_id="painting", elem_classes=AWAY) as made["painting"]:
        brush = gr.Brush(default_size="auto", colors=[_rgba()], default_color=_rgba(), color_mode="fixed")
        made["editor"] = MaskEditor(
            label="Paint over the thing", show_label=False, sources=(), transforms=(), layers=False, brush=brush,
            format="png",
            height=440, canvas_size=(320, 320), buttons=[], elem_id="editor",
        )  # fmt: skip
        with gr.Row(elem_classes="tools"):
            made["drop_mask"] = gr.UploadButton("Upload its mask", size="sm", min_width=90, elem_id="drop-mask")
            made["keep"] = gr.Button("Add another", size="sm", min_width=90)
            made["discard"] = gr.Button("Discard", size="sm", min_width=80)
    with gr.Column(visible=False) as made["kept"]:
        made["references"] = gr.Gallery(
            label="References", show_label=False, columns=4, fit_columns=False, height="auto",
            allow_preview=False, object_fit="contain", format="jpeg", buttons=[], interactive=False,
            elem_id="references",
        )  # fmt: skip
        made["remove"] = gr.Button("Remove the chosen reference", size="sm")
    gr.HTML(_step(2, "Where to look", "Drop other pictures, or a video."))
    made["drop_queries"] = gr.File(
        label="Pictures, or a video", show_label=False, file_count="multiple", height=130, elem_id="drop-queries"
    )
    with gr.Row(elem_classes="tools"):
        made["find"] = gr.Button("Find it", variant="primary", min_width=120, scale=3)
        made["stop"] = gr.Button("Stop", variant="stop", visible=False, min_width=80)
        made["clear"] = gr.Button("Clear", min_width=80)
    return made


def _right(pipe: InContextSegmentationPipeline, many_steps: bool) -> dict[str, Any]:
    made: dict[str, Any] = {}
    gr.HTML(_step(3, "What is found", "Click on a picture to enlarge it."))
    made["movie"] = gr.Video(
        label="The clip", visible=False, autoplay=True, loop=True, buttons=["download"], interactive=False, height=420
    )
    made["results"] = gr.Gallery(
        label="Results", show_label=False, columns=2, height="auto", object_fit="contain", format="jpeg",
        buttons=["fullscreen"],
        interactive=False, elem_id="results",
    )  # fmt: skip
    made["status"] = gr.HTML("", elem_id="status")
    made["threshold"] = gr.Slider(
        -THRESHOLDS, THRESHOLDS, 0.0, step=0.05, label="Threshold", info="Left: more is found. Right: less.",
        elem_id="threshold",
    )  # fmt: skip
    model = pipe.model
    own = (model.steps, model.guidance.query, model.guidance.instruction) if isinstance(model, LDISn) else (1, 1.0, 1.0)
    with gr.Accordion("Sampler: used when it looks the next time", open=many_steps, visible=many_steps):
        with gr.Row():
            made["steps"] = gr.Slider(1, max(MOST_STEPS, own[0]), own[0], step=1, label="Steps", min_width=140)
            made["seed"] = gr.Number(0, precision=0, minimum=0, maximum=2**31, label="Seed of the noise", min_width=100)
        with gr.Row():
            made["guide_query"] = gr.Slider(
                0, MOST_GUIDANCE, own[1], step=0.1, label="Guidance by the picture", min_width=140
            )
            made["guide_reference"] = gr.Slider(
                0, MOST_GUIDANCE, own[2], step=0.1, label="Guidance by the references", min_width=140
            )
    made["download"] = gr.Button("Download masks", elem_id="download")
    made["file"] = gr.DownloadButton("masks", elem_id="masks-file")
    return made


def _rgba() -> str:
    return f"rgba({BRUSH[0]}, {BRUSH[1]}, {BRUSH[2]}, {OPACITY / 255:.1f})"


def _step(number: int, title: str, hint: str) -> str:
    return f"<h2><b>{number}</b> {title}</h2><p class='hint'>{hint}</p>"
