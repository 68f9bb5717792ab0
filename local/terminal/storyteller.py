"""Shows a story at the terminal while it is written, word by word, above a progress line.

At a terminal, finished lines scroll up, and the unfinished line and the progress line are redrawn below them. In a log or a pipe,
words are printed as they arrive.
"""

import sys
import textwrap
import time
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

WIDEST_LINE = 100


class Storyteller:
    """Collects and shows the text of a stream. `text` is the result of its snapshots, chunks and resets."""

    def __init__(self, console: Console) -> None:
        self.text = ""
        self._console = console
        self._width = min(console.width, WIDEST_LINE)
        self._line = ""
        """The last, unfinished line, as far as it is shown."""
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[words]} words, {task.fields[rate]:.0f} a second"),
            TimeElapsedColumn(),
            console=console,
        )
        self._task = self._progress.add_task("waiting for a writer", total=None, words=0, rate=0.0)
        self._live = Live(console=console, refresh_per_second=12, transient=True) if console.is_terminal else None
        self._first_word_at: float | None = None

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
            self._refresh()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._break_line()
        if self._live is not None:
            self._live.stop()
        self._console.print(self._summary(), style="dim")

    def append(self, text: str) -> None:
        """Add text to the end (a chunk)."""
        self.text += text
        if self._first_word_at is None:
            self._first_word_at = time.monotonic()
            self._progress.update(self._task, description="writing")
        self._show(text)

    def replace(self, text: str) -> None:
        """Replace the text by that of a snapshot, with which a stream begins or resumes."""
        if text.startswith(self.text):
            news = text[len(self.text) :]
            if news:
                self.append(news)
            return
        self._break_line()
        self.text = ""
        self.append(text)

    def start_over(self, attempt: int) -> None:
        """Discard the text (a reset), because another worker starts the story again."""
        self._break_line()
        if self.text:
            self._console.print(f"the writing starts over, attempt {attempt}", style="yellow")
        self.text = ""

    def show_state(self, state: str) -> None:
        self._progress.update(self._task, description=state.removeprefix("STORY_STATE_").lower())
        self._refresh()

    def _show(self, text: str) -> None:
        if self._live is None:
            sys.stdout.write(text)
            sys.stdout.flush()
            self._line = text.rpartition("\n")[2]
            return
        *finished, rest = self._wrapped(self._line + text)
        if finished:
            # print() redraws the live lines, which must not repeat the beginning of a printed line.
            self._line = ""
            self._refresh()
            self._console.print(Text("\n".join(finished)))
        self._line = rest
        self._refresh()

    def _wrapped(self, text: str) -> list[str]:
        """The text as lines no wider than the terminal; the last is unfinished and keeps its trailing space."""
        lines: list[str] = []
        for paragraph in text.split("\n"):
            lines += textwrap.wrap(paragraph, self._width, drop_whitespace=False) or [""]
        return lines

    def _break_line(self) -> None:
        if not self._line:
            return
        if self._live is None:
            print()
        else:
            self._console.print(Text(self._line))
        self._line = ""

    def _refresh(self) -> None:
        if self._live is None:
            return
        self._progress.update(self._task, words=len(self.text.split()), rate=self._rate())
        self._live.update(Group(Text(self._line), self._progress))

    def _rate(self) -> float:
        if self._first_word_at is None:
            return 0.0
        return len(self.text.split()) / max(time.monotonic() - self._first_word_at, 0.1)

    def _summary(self) -> str:
        return f"{len(self.text.split())} words, {self._rate():.0f} a second"
