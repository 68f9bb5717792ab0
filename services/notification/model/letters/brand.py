"""How mails look: the name, colour, logo and address of the one who runs the mesh."""

from __future__ import annotations

import re
from dataclasses import dataclass

_COLOR = re.compile(r"#[0-9a-fA-F]{6}")
_DARK, _LIGHT = "#000000", "#ffffff"


@dataclass(frozen=True, slots=True)
class Brand:
    name: str = "Storymesh"
    color: str = "#5b4bdb"
    """The colour of buttons and marks, as #rrggbb."""
    logo_url: str = ""
    """Where mail programs load the logo, shown 32 pixels high. Empty: the name stands in its place, as where images are off."""
    address: str = ""
    """The lines at a mail's end: who sends it, and their postal address."""

    def __post_init__(self) -> None:
        if not _COLOR.fullmatch(self.color):
            raise ValueError("needs a colour such as #5b4bdb")

    @property
    def text_color(self) -> str:
        """The colour of text on `color`: black or white, the one of the higher contrast, which is 4.5 to 1 or more (WCAG 2.2)."""
        background = _luminance(self.color)
        return max((_LIGHT, _DARK), key=lambda text: _contrast(_luminance(text), background))

    @property
    def initial(self) -> str:
        """The letter of the mark that stands beside the name where there is no logo."""
        return self.name[0].upper()

    @property
    def address_lines(self) -> list[str]:
        return self.address.split("\n") if self.address else []


def _luminance(color: str) -> float:
    """The relative luminance of a colour (WCAG 2.2)."""
    red, green, blue = (_linear(int(color[at : at + 2], 16) / 255) for at in (1, 3, 5))
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def _linear(channel: float) -> float:
    return channel / 12.92 if channel <= 0.04045 else float(((channel + 0.055) / 1.055) ** 2.4)


def _contrast(one: float, other: float) -> float:
    return (max(one, other) + 0.05) / (min(one, other) + 0.05)
