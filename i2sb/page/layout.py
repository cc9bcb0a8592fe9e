"""The page itself: what stands on it, and what happens when something is pressed."""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import Any

import gradio as gr

from i2sb.config import PageConfig
from i2sb.errors import FileError, UserError
from i2sb.page.offers import Able, Shelf
from i2sb.page.pictures import (
    EXAMPLES,
    HOLE_COLOUR,
    PAINTED_SIDE,
    RefusedError,
    Upload,
    draw,
    read_painting,
    shrink,
    signal,
    take_upload,
)
from i2sb.page.restoring import CancelledError, Given, Wish, prepare, restore
from i2sb.page.visitors import Visitor, Visitors

CSS = Path(__file__).parent / "page.css"
KEPT_SECONDS = 4 * 3600  # that what came out can be looked at and downloaded
AS_IT_IS = ""  # the degradation that is none
MOST_SAMPLES = 8

# What settings are called on the page.
WORDS = {
    "nfe": "Steps",
    "sampler": "Way to step",
    "consistency": "Agreement with the picture",
    "samples": "Answers",
    "seed": "Seed",
    "corrupt": "Damage",
    "mask": "The hole",
}
_CONSISTENCY_WORDS = {"none": "leave it to the network", "project": "exact (project)", "gradient": "gentle (gradient)"}

_GREETING = "Choose a picture or an example, then press Restore."
_TITLE = """
<h1>Restore a picture</h1>
<p>A small neural network takes a damaged picture back, step by step, to what it may have looked like. All is computed
on the machine that serves this page: no picture leaves it.</p>
"""


def build_theme() -> gr.themes.Base:
    """Return the page's looks, made of what every browser has: no font comes from elsewhere."""
    fonts = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
    return gr.themes.Soft(
        primary_hue="teal",
        secondary_hue="teal",
        neutral_hue="slate",
        radius_size="lg",
        font=fonts,
        font_mono=["ui-monospace", "monospace"],
    )


def build_page(config: PageConfig, shelf: Shelf, visitors: Visitors) -> gr.Blocks:
    """Lay out the page and say what its parts do."""
    words = _Words(config, shelf, visitors)
    examples = [(str(path), path.stem) for path in sorted(EXAMPLES.glob("*.jpg"))]
    names = list(shelf.offers)
    with gr.Blocks(title="Restore a picture", analytics_enabled=False, delete_cache=(600, KEPT_SECONDS)) as page:
        gr.HTML(_TITLE, elem_id="title", padding=False)
        with gr.Row(equal_height=False, elem_id="columns"):
            with gr.Column(scale=5, min_width=280, elem_id="asked"):
                with gr.Group():
                    run = gr.Dropdown(names, value=names[0], label="1 · Network", elem_id="run", filterable=False)
                    about = gr.HTML(elem_id="about", elem_classes="hint", padding=False)
                with gr.Group():
                    drop = gr.File(
                        label=f"2 · Your picture: JPEG, PNG or WebP, up to {config.max_megapixels:g} megapixels",
                        type="filepath",
                        height=120,
                        elem_id="drop",
                    )
                    gallery = gr.Gallery(
                        examples,
                        label="… or an example",
                        columns=3,
                        rows=1,
                        height=170,
                        object_fit="cover",
                        allow_preview=False,
                        interactive=False,
                        buttons=[],
                        elem_id="examples",
                    )
                trouble = gr.HTML(elem_id="trouble", padding=False)
                damage = gr.Dropdown(
                    [("Nothing: it is damaged already", AS_IT_IS)],
                    value=AS_IT_IS,
                    label="3 · Damage it first, to try the network out",
                    filterable=False,
                    elem_id="damage",
                )
                given = gr.Image(
                    label="What the network is given",
                    interactive=False,
                    format="png",
                    buttons=[],
                    visible=False,
                    elem_id="given",
                )
                painter = gr.ImageEditor(
                    label="4 · Paint the hole",
                    type="pil",
                    sources=(),
                    transforms=(),
                    layers=False,
                    brush=gr.Brush(
                        default_size=24, colors=["#{:02x}{:02x}{:02x}".format(*HOLE_COLOUR)], color_mode="fixed"
                    ),
                    buttons=[],
                    visible=False,
                    elem_id="painter",
                )
                with gr.Accordion("Settings", open=False, elem_id="settings"):
                    nfe = gr.Slider(
                        1,
                        100,
                        value=1,
                        step=1,
                        label=WORDS["nfe"],
                        info="Evaluations of the network (NFE). One is fastest and, with the networks that come with "
                        "this project, closest to the original (best PSNR). More draw finer detail, partly invented, "
                        "and the way there is shown.",
                        elem_id="nfe",
                    )
                    samples = gr.Slider(
                        1,
                        MOST_SAMPLES,
                        value=1,
                        step=1,
                        label=WORDS["samples"],
                        info="Several answers, each with chance of its own, show where the network is unsure. "
                        "They need more than one step, and a network that draws noise.",
                        elem_id="samples",
                    )
                    sampler = gr.Dropdown(
                        label=WORDS["sampler"], info="The first is the usual one.", filterable=False, elem_id="sampler"
                    )
                    consistency = gr.Radio(
                        label=WORDS["consistency"],
                        info="Keeps the result in line with the damaged picture, where the damage is known exactly.",
                        elem_id="consistency",
                    )
                    seed = gr.Number(
                        0,
                        label=WORDS["seed"],
                        info="Another number draws other chance: other damage and other details.",
                        precision=0,
                        minimum=0,
                        maximum=2**31 - 1,
                        elem_id="seed",
                    )
            with gr.Column(scale=6, min_width=280, elem_id="answered"):
                with gr.Row(elem_id="buttons"):
                    go = gr.Button("Restore", variant="primary", size="lg", elem_id="go")
                    halt = gr.Button("Stop", variant="stop", size="lg", visible=False, elem_id="halt")
                said = gr.HTML(
                    words.say("Choose a picture or an example, then press Restore."), elem_id="said", padding=False
                )
                slider = gr.ImageSlider(
                    label="Before and after: drag the line",
                    format="png",
                    interactive=False,
                    max_height=760,
                    buttons=["fullscreen"],
                    elem_id="slider",
                )
                download = gr.DownloadButton(
                    "Download the restored picture, whole", visible=False, size="lg", elem_id="download"
                )
                with gr.Accordion("The way from damaged to restored", visible=False, elem_id="way") as way:
                    gr.HTML(
                        "<p>Step by step; in the lower row, what the network takes the clean picture to be.</p>",
                        elem_classes="hint",
                    )
                    animation = gr.Image(
                        interactive=False, show_label=False, format="webp", buttons=[], type="filepath", elem_id="film"
                    )
                    strip = gr.Image(
                        interactive=False, show_label=False, buttons=["fullscreen"], type="filepath", elem_id="strip"
                    )
                with gr.Accordion("Where the answers differ", visible=False, elem_id="spread") as spread:
                    gr.HTML(
                        "<p>Dark: all answers agree. Bright: they differ, and what is seen there is a guess.</p>",
                        elem_classes="hint",
                    )
                    heat = gr.Image(interactive=False, show_label=False, buttons=[], type="filepath", elem_id="heat")

        shown = [given, painter, consistency, trouble]
        outcome = [said, slider, download, way, animation, strip, spread, heat]
        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}

        at_once = quiet | {"concurrency_limit": None}  # also while others restore
        look = [run, damage, seed]
        page.load(words.welcome, run, [about, damage, sampler, nfe, trouble], **quiet).then(
            words.look, look, shown, **quiet
        )
        run.input(words.welcome, run, [about, damage, sampler, nfe, trouble], **quiet).then(
            words.look, look, shown, **quiet
        )
        drop.upload(words.take, [drop, run], [drop, damage, trouble], **quiet).then(
            words.look_unless_refused, [*look, trouble], shown, **quiet
        )
        gallery.select(words.take_example, run, [damage, trouble], **quiet).then(words.look, look, shown, **quiet)
        damage.input(words.look, look, shown, **quiet)
        seed.change(words.look, look, shown, **quiet)
        asked = [run, damage, painter, sampler, nfe, consistency, samples, seed]
        go.click(words.begin, None, [go, halt, said], **at_once).then(
            words.restore,
            asked,
            outcome,
            show_progress="full",
            show_progress_on=slider,
            api_visibility="private",
            concurrency_limit=1,
            concurrency_id="restoring",
        ).then(words.end, None, [go, halt], **at_once)
        halt.click(words.halt, None, said, **at_once)
        page.unload(words.leave)
    page.queue(max_size=20, default_concurrency_limit=2)
    return page


class _Words:
    """What happens on the page, in words: every method is called by Gradio with what stands on it."""

    def __init__(self, config: PageConfig, shelf: Shelf, visitors: Visitors) -> None:
        self.config, self.shelf, self.visitors = config, shelf, visitors

    # --- Choosing ----------------------------------------------------------------------------------------------------

    def welcome(self, run: str, request: gr.Request) -> tuple[Any, ...]:
        """A network is chosen: say what it does, and offer what it can."""
        self._find(request)
        try:
            able = self.shelf.take(run)
        except UserError as error:
            return "", gr.skip(), gr.skip(), gr.skip(), self.complain(self._explain(error))
        about = f"<p>Undoes: <b>{html.escape(able.undoes)}</b></p>"
        return (
            about,
            gr.update(choices=self._list_damages(able), value=self._usual_damage(able, request)),
            gr.update(choices=list(able.samplers), value=able.usual_sampler, visible=len(able.samplers) > 1),
            gr.update(maximum=able.most_steps, value=able.usual_steps, visible=able.most_steps > 1),
            "",
        )

    def _list_damages(self, able: Able) -> list[tuple[str, str]]:
        from corruption import describe_damage

        nothing = "Nothing: paint the hole yourself" if able.needs_hole else "Nothing: it is damaged already"
        described = [(describe_damage(name), name) for name in able.degradations]
        return [(nothing, AS_IT_IS), *((words[0].upper() + words[1:], name) for words, name in described)]

    def _usual_damage(self, able: Able, request: gr.Request) -> str:
        """An example is whole, so it is damaged as the run knows it; but holes are for the visitor to paint."""
        upload = self._find(request).upload
        is_example = upload is not None and upload.path.parent == EXAMPLES
        return able.degradations[0] if is_example and able.degradations and not able.needs_hole else AS_IT_IS

    def take(self, file: str, run: str, request: gr.Request) -> tuple[Any, ...]:
        """A file was dropped: take it, or say in a line why not. It does not stay where it was put."""
        visitor = self._find(request)
        try:
            visitor.upload = take_upload(Path(file), Path(file).name, visitor.folder, self.config)
        except RefusedError as error:
            return None, gr.skip(), self.complain(f"{Path(file).name}: {error}")
        finally:
            Path(file).unlink(missing_ok=True)
        return None, AS_IT_IS, ""

    def take_example(self, event: gr.SelectData, run: str, request: gr.Request) -> tuple[Any, ...]:
        """An example was chosen."""
        path = sorted(EXAMPLES.glob("*.jpg"))[int(event.index)]
        self._find(request).upload = Upload(path.stem, path)
        try:
            return self._usual_damage(self.shelf.take(run), request), ""
        except UserError as error:
            return gr.skip(), self.complain(self._explain(error))

    def look_unless_refused(self, run: str, damage: str, seed: float, trouble: str, request: gr.Request) -> Any:
        """Show the picture that was dropped, unless it was refused: then what is shown stays, and so does the line."""
        return (gr.skip(),) * 4 if trouble else self.look(run, damage, seed, request)

    def look(self, run: str, damage: str, seed: float, request: gr.Request) -> tuple[Any, ...]:
        """Show what the network would be given, to look at or to paint on."""
        hidden = gr.update(visible=False)
        upload = self._find(request).upload
        try:
            able = self.shelf.take(run)
            kinds = [(_CONSISTENCY_WORDS[kind], kind) for kind in able.list_consistencies(damage)]
            offered = gr.update(choices=kinds, value="none", visible=len(kinds) > 1)
            if upload is None:
                return hidden, hidden, offered, ""
            picture = self._read(upload, able)
            if able.fills_holes and not damage:
                canvas = shrink(draw(signal(picture)), PAINTED_SIDE)
                value = {"background": canvas, "layers": [], "composite": None}
                return hidden, gr.update(value=value, visible=True, canvas_size=canvas.size), offered, ""
            given = prepare(able, picture, Wish(corrupt=damage, seed=int(seed or 0)))
            return gr.update(value=given.draw(), visible=True), hidden, offered, ""
        except (UserError, RefusedError) as error:
            line = self._explain(error) if upload is None else f"{upload.name}: {self._explain(error)}"
            return hidden, hidden, gr.skip(), self.complain(line)

    # --- Restoring ---------------------------------------------------------------------------------------------------

    def begin(self, request: gr.Request) -> tuple[Any, ...]:
        """Restore was pressed."""
        self._find(request).stop.clear()
        waiting = self.say("Restoring, as soon as it is your turn …")
        return gr.update(interactive=False, value="Restoring …"), gr.update(visible=True), waiting

    def restore(
        self,
        run: str,
        damage: str,
        painting: dict[str, Any] | None,
        sampler: str,
        nfe: float,
        consistency: str | None,
        samples: float,
        seed: float,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008 - Gradio finds it there
    ) -> tuple[Any, ...]:
        """Restore as it is asked for, and show what came out; or say in a line why nothing did."""
        visitor = self._find(request)
        nothing = (gr.skip(),) * 7
        if visitor.upload is None:
            return self.complain("There is no picture yet: drop one, or take an example."), *nothing
        try:
            progress(0, desc="getting ready")
            able = self.shelf.take(run)
            given, wish = self._ask(able, visitor, damage, painting, sampler, nfe, consistency, samples, seed)
            name = re.sub(r"\W+", "-", visitor.upload.name).strip("-") or "picture"

            def report(share: float, what: str) -> None:
                progress(share, desc=what)

            done = restore(able, given, wish, visitor.folder, name, report, visitor.stop)
        except CancelledError:
            return self.say("Stopped."), *nothing
        except (UserError, RefusedError) as error:
            return self.complain(self._explain(error)), *nothing
        return (
            self.say(done.summary),
            (done.before, done.after),
            gr.update(value=str(done.file), visible=True),
            gr.update(visible=wish.nfe > 1),  # after a single step the slider shows all of it
            str(done.animation),
            str(done.strip),
            gr.update(visible=done.heat is not None),
            None if done.heat is None else str(done.heat),
        )

    def _ask(
        self,
        able: Able,
        visitor: Visitor,
        damage: str,
        painting: dict[str, Any] | None,
        sampler: str,
        nfe: float,
        consistency: str | None,
        samples: float,
        seed: float,
    ) -> tuple[Given, Wish]:
        assert visitor.upload is not None
        picture = self._read(visitor.upload, able)
        hole = None
        if able.fills_holes and not damage:
            layers = painting["layers"] if painting else []
            hole = read_painting(layers, *picture.image.shape[-2:])
            if hole is None and able.needs_hole:
                raise RefusedError("Paint over what is to be filled in first.")
            if hole is not None and bool(hole.all()):
                raise RefusedError("All of the picture is painted over: leave something to go by.")
        if sampler not in able.samplers:
            raise RefusedError("Choose one of the ways to step.")
        wish = Wish(
            corrupt=damage,
            hole=hole,
            sampler=sampler,
            nfe=int(nfe),
            consistency=consistency or "none",
            samples=int(samples),
            seed=int(seed or 0),
        )
        return prepare(able, picture, wish), wish

    def end(self) -> tuple[Any, ...]:
        """The restoration is over, however it ended."""
        return gr.update(interactive=True, value="Restore"), gr.update(visible=False)

    def halt(self, request: gr.Request) -> str:
        """Stop was pressed."""
        self._find(request).stop.set()
        return self.say("Stopping …")

    def leave(self, request: gr.Request) -> None:
        """The page was closed."""
        self.visitors.forget(str(request.session_hash))

    # --- Words -------------------------------------------------------------------------------------------------------

    def say(self, line: str) -> str:
        """Return a line for the page."""
        return f'<p role="status">{html.escape(line)}</p>'

    def complain(self, line: str) -> str:
        """Return a line that says what is wrong."""
        return f'<p role="alert">{html.escape(line)}</p>'

    def _explain(self, error: Exception) -> str:
        """Say what is wrong in one line, in the page's words; no path is in it."""
        line = error.must if isinstance(error, FileError) else str(error)
        if isinstance(error, UserError) and error.setting in WORDS:
            line = line.replace(str(error.setting), WORDS[str(error.setting)], 1)
        line = re.sub(r"`(\w+)`", lambda match: WORDS.get(match[1], match[1]), line)
        for folder in (self.config.results_dir, self.config.exported_dir, str(self.visitors.folder)):
            for spelled in (str(Path(folder).resolve()), folder):
                line = line.replace(f"{spelled}/", "")
        return " ".join(line.split())

    def _find(self, request: gr.Request) -> Visitor:
        return self.visitors.find(str(request.session_hash))

    def _read(self, upload: Upload, able: Able) -> Any:
        return upload.read(able.model.config.image_channels, able.model.config.value_range)
