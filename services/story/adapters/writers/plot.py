"""The plot that the composer and the local model share.

A small model cannot keep to a plot and rules cannot invent one, so the plot is given: someone finds a lost thing and carries it
home. The brief and its seed decide who, what, where and in which words. Each beat has a lead, the sentence that moves the plot on,
and details that say more about it. The composer writes leads and details; the local model continues each lead itself.

Templates are constants of this module. A reader's words only fill slots, and a filled slot is not expanded again.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass
from string import Template

from services.story.adapters.writers import Brief, WordCount

from .prose import and_list, fragment, is_complete, one_line, phrase

_ALL = (WordCount.SHORT, WordCount.MEDIUM, WordCount.LONG)
_LONGER = (WordCount.MEDIUM, WordCount.LONG)
_LONG = (WordCount.LONG,)


@dataclass(frozen=True, slots=True)
class Beat:
    """The plan of a paragraph. `stems` are beginnings of sentences for a model to complete."""

    lead: str
    stems: tuple[str, ...]
    details: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Plot:
    """The plan of a story. `subject` and `possessive` are the hero's pronouns; all people in the story share them, so that a
    sentence of the model with the other pair is a fault.
    """

    title: str
    hero: str
    pronouns: tuple[str, str]
    beats: tuple[Beat, ...]
    closing: str
    loves: str
    theme: str
    wish: str


@dataclass(frozen=True, slots=True)
class _Cast:
    heroes: tuple[str, ...]
    friends: tuple[tuple[str, str], ...]
    owner: str
    pronouns: tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class _Scene:
    """A template of a beat: the lengths that include it, a choice of leads, and its stems and details in order."""

    lengths: tuple[WordCount, ...]
    leads: tuple[str, ...]
    stems: tuple[str, ...]
    details: tuple[str, ...]


_CASTS = (
    _Cast(
        ("Mara", "Ines", "Nora", "Freya", "Amina", "Lucia"),
        (("Greta", "the clockmaker"), ("Rosa", "the baker"), ("Hilda", "the retired ferry captain")),
        "old woman",
        ("she", "her", "her"),
    ),
    _Cast(
        ("Emil", "Jonas", "Idris", "Hugo", "Mateo", "Ravi"),
        (("Oskar", "the clockmaker"), ("Bruno", "the baker"), ("Anton", "the retired ferry captain")),
        "old man",
        ("he", "his", "him"),
    ),
)
_PLACES = (
    "a small harbour town",
    "a village high in the mountains",
    "a narrow street at the edge of a great forest",
    "a town of bridges and canals",
)
_THINGS = (
    ("an old brass key", "the key", "Brass Key"),
    ("a small blue lantern", "the lantern", "Blue Lantern"),
    ("a silver compass", "the compass", "Silver Compass"),
    ("a wooden music box", "the music box", "Music Box"),
    ("a tarnished pocket watch", "the watch", "Pocket Watch"),
)
_LANDMARKS = ("the old lighthouse", "the mill on the hill", "the stone tower", "the house behind the waterfall")
_FINDING_PLACES = ("on the doorstep", "under a bench", "in the grass beside the path", "at the bottom of a rain barrel")
_DEFAULT_LOVES = (("puzzles", "long walks"), ("old maps", "fresh bread"), ("quiet mornings", "good questions"))
_DEFAULT_THEMES = ("the road that leads out of town", "the far side of the hills", "the art of finding things")

_SCENES = (
    _Scene(
        _ALL,
        (
            "$hero lived in $place and loved $loves more than anything. Lately $she could think of nothing but $theme.",
            "In $place lived $hero, who loved $loves. That year, though, $she thought mostly about $theme.",
        ),
        ("Every evening $she", "What $she liked best was", "On rainy days $she"),
        (
            "The neighbours were used to it.",
            "$She talked about it at breakfast, on the way to the market, and even to the pigeons on the roof.",
            "What $she wanted most was to see it with $her own eyes, and not just to hear about it.",
            "But days in $place were short and all alike, and nothing ever seemed to begin.",
        ),
    ),
    _Scene(
        _ALL,
        (
            "One grey morning $she found $thing $where.",
            "Then, one quiet Sunday, $hero found $thing $where.",
        ),
        ("$It was", "When $she picked it up,", "It felt"),
        (
            "It was cold and heavier than it looked, and somebody had polished it with great care.",
            "There was no name on it, only a scratch in the shape of a bird.",
            "$hero turned it over and over, and the longer $she held it, the warmer it became.",
        ),
    ),
    _Scene(
        _LONGER,
        (
            "$She carried it to $friend, $friend_role next door. “Somebody must be missing this,” said $friend.",
            "$She showed it to $friend, $friend_role next door, who put on a pair of glasses. “Somebody has lost this.”",
        ),
        ("“Perhaps it belongs to", "They looked at it", "$friend thought of"),
        (
            "They laid $it on the kitchen table between the teapot and the jam.",
            "For a while neither of them spoke, because both were thinking the same thing.",
            "“A lost thing is a question,” $friend said at last, “and a question should not be left lying about.”",
        ),
    ),
    _Scene(
        _LONG,
        (
            "In the lamplight they saw a tiny picture of $landmark on its side, and a very small arrow.",
            "When the light fell on it from the left, a fine line appeared on its side, and the line led to $landmark.",
        ),
        ("Nobody had", "It must be", "$hero wondered"),
        (
            "$hero had seen $landmark only once, from far away, on a very clear day.",
            "People said that nobody had gone up there for years, and that the path was not on any map.",
            "“Then we shall need sandwiches,” said $friend.",
        ),
    ),
    _Scene(
        _LONGER,
        (
            "So the next day the two of them packed bread and apples and set out before breakfast.",
            "They left before sunrise, with bread and apples in a bag and $it in a woollen sock.",
        ),
        ("The air was", "Above them", "The street was"),
        (
            "The street was empty, and their steps sounded like four people walking.",
            "$hero looked back once, and the town already seemed as small as a toy.",
            "Nobody waved, but in one of the windows a light went on, as if to wish them luck.",
        ),
    ),
    _Scene(
        _LONG,
        (
            "The road led through the woods, and $hero talked about $love_two the whole way.",
            "The road through the woods was long, and to make it shorter $hero told $friend all about $love_two.",
        ),
        ("“The best thing about $love_two is", "The trees", "Now and then"),
        (
            "$friend listened, and asked the kind of questions that make a person say more.",
            "A fox crossed the path in front of them, stopped, and looked as if it wanted to hear the rest.",
            "By noon they had eaten the apples, and the trees stood so close that it was almost evening there.",
        ),
    ),
    _Scene(
        _ALL,
        (
            "But in the afternoon a storm came up, and the path disappeared in the rain.",
            "But then a thick fog came down, and the path was gone.",
        ),
        ("The wind", "All around", "Soon the"),
        (
            "Every tree looked like every other tree.",
            "$hero called, and only $her own voice came back, a little late and a little strange.",
            "The ground was soft, and the footprints were gone almost as soon as they were made.",
        ),
    ),
    _Scene(
        _LONGER,
        (
            "$hero sat down on a stone and wanted to go home.",
            "For the first time that day $hero was afraid.",
        ),
        ("$Her feet were", "$She thought of", "The only sound was"),
        (
            "Even $friend, who was never at a loss, stood still and said nothing.",
            "$It lay in $her hand and was no help at all.",
            "It had been a foolish idea, $she thought, to walk so far for a stranger.",
            "Somewhere behind the grey a bird was singing, and $she wished $she knew what it found to sing about.",
        ),
    ),
    _Scene(
        _LONG,
        (
            "“You have thought about $theme for so long,” said $friend. “Think about it now.”",
            "“Tell me about $theme,” said $friend, and sat down beside $him. “There is no better time.”",
        ),
        ("So $hero told $friend about", "$friend listened and", "It made $him feel"),
        (
            "It was an odd thing to say in such a place, and perhaps that is why it helped.",
            "$hero began to speak, slowly at first, and found that $she knew more about it than $she had believed.",
            "The two of them shared the last of the bread, and it tasted better than any bread before it.",
        ),
    ),
    _Scene(
        _ALL,
        (
            "Then $hero remembered what $love_one had taught $him, and suddenly $she knew what to do.",
            "And just then $hero thought of $love_one, and all at once $she saw the answer.",
        ),
        ("Very carefully $she", "Step by step $she", "With both hands $she"),
        (
            "It was so simple that $she laughed out loud.",
            "You only had to stop looking for the path and look for the one who had lost it.",
            "$She held up $it, and step by step $she walked to where it shone a little brighter.",
        ),
    ),
    _Scene(
        _LONG,
        (
            "When the sky cleared, $landmark stood right in front of them.",
            "The last clouds moved away, and there was $landmark, much closer than they had thought.",
        ),
        ("The walls were", "The windows were", "In the garden"),
        (
            "It was smaller than in the picture and far more beautiful.",
            "Smoke rose from the chimney, and there was a smell of cinnamon.",
            "A row of boots stood beside the door, as though a whole family of walkers lived there.",
        ),
    ),
    _Scene(
        _ALL,
        (
            "At last there was a door, and $owner stepped out, saw $it, and began to smile.",
            "At last there was a door, and before anyone could knock, $owner opened it and saw $it in $possessive hand.",
        ),
        ("“Thank you for bringing", "“I have waited", "$hero felt"),
        (
            "“I lost it when I was as young as you.”",
            "For a moment it was so quiet that you could hear the grass dry.",
            "“I had stopped waiting, and that is just when things come home.”",
        ),
    ),
    _Scene(
        _LONGER,
        (
            "$The_owner asked them in, and there was soup for everyone.",
            "There was a fire inside, and a table that seemed to have been laid for three.",
        ),
        ("The soup tasted of", "The room was", "On the wall hung"),
        (
            "They heard where $it had come from, and whose hands had made it.",
            "$hero asked about everything, and $the_owner had an answer to almost all of it.",
            "When they said goodbye, $hero was given a small tin whistle, so that nobody would ever be lost there again.",
        ),
    ),
    _Scene(
        _LONG,
        (
            "The two friends walked home under the first stars.",
            "The way home was short, as ways home often are.",
        ),
        ("The moon", "They sang", "Behind them"),
        (
            "They did not talk much, and they did not need to.",
            "The fox was waiting at the same place, and $hero told it how everything had ended.",
            "Below them the windows of the town lit up one by one, like a letter being written.",
        ),
    ),
    _Scene(
        _LONGER,
        (
            "On the last part of the way $hero understood something about $theme that nobody had ever told $him.",
            "And somewhere on that road $hero understood what $theme really meant.",
        ),
        ("It was like", "It meant that", "$She wanted to"),
        (
            "It is not a thing that you can find by looking for it.",
            "It comes along beside you while you carry something home for someone else.",
            "“I know,” said $friend, although $hero had not said a word.",
        ),
    ),
)
_CLOSINGS = (
    "That night $hero put $her muddy shoes beside the bed and fell asleep with a smile.",
    "That night $hero left the window open, so that the stars could come in, and slept until noon.",
)
_STEMS = 2
_DEDICATION = " And whenever you find something that somebody has lost, $reader, you will know what to do."
_WISH = " Beside it lay a note in careful handwriting: “$wish”"


def plot(brief: Brief) -> Plot:
    """Plan the story for a brief. Deterministic: the same brief always gives the same plot."""
    rng = random.Random(brief.seed)  # noqa: S311 - to be repeatable, not secret
    cast = rng.choice(_CASTS)
    reader = phrase(brief.first_name, max_words=3, max_bytes=40)
    hero = rng.choice([name for name in cast.heroes if name.casefold() not in reader.casefold().split()])
    friend, friend_role = rng.choice(cast.friends)
    thing, it, thing_name = rng.choice(_THINGS)
    loves = _loves(brief.preferences) or rng.choice(_DEFAULT_LOVES)
    theme = phrase(brief.theme, max_words=8, max_bytes=100) or rng.choice(_DEFAULT_THEMES)
    wish = fragment(brief.prompt, max_words=20, max_bytes=160)
    if wish and not is_complete(wish):
        wish += "."
    subject, possessive, object_ = cast.pronouns
    slots = {
        "hero": hero,
        "she": subject,
        "She": subject.capitalize(),
        "her": possessive,
        "Her": possessive.capitalize(),
        "him": object_,
        "possessive": f"{hero}'s",
        "friend": friend,
        "friend_role": friend_role,
        "place": rng.choice(_PLACES),
        "thing": thing,
        "it": it,
        "It": it.capitalize(),
        "where": rng.choice(_FINDING_PLACES),
        "owner": f"an {cast.owner}",
        "the_owner": f"the {cast.owner}",
        "The_owner": f"The {cast.owner}",
        "landmark": rng.choice(_LANDMARKS),
        "loves": and_list(loves),
        "love_one": loves[0],
        "love_two": loves[-1],
        "theme": theme,
        "wish": wish,
        "reader": reader,
    }

    def tell(template: str) -> str:
        return Template(template).substitute(slots)

    beats = []
    for number, scene in enumerate(_SCENES):
        lead = tell(rng.choice(scene.leads) + (_WISH if number == 1 and wish else ""))
        if brief.length in scene.lengths:
            stems = [scene.stems[index] for index in sorted(rng.sample(range(len(scene.stems)), _STEMS))]
            beats.append(Beat(lead, tuple(map(tell, stems)), tuple(map(tell, scene.details))))
    return Plot(
        title=_title(brief.title) or f"{hero} and the {thing_name}",
        hero=hero,
        pronouns=(subject, possessive),
        beats=tuple(beats),
        closing=tell(rng.choice(_CLOSINGS) + (_DEDICATION if reader else "")),
        loves=and_list(loves),
        theme=theme,
        wish=wish,
    )


def _title(given: str | None) -> str:
    return one_line(given or "")[:120].strip()


def _loves(preferences: Iterable[str]) -> tuple[str, ...]:
    """Return the preferences as phrases, without empty ones and repetitions, five at most."""
    phrases = (phrase(preference, max_words=4, max_bytes=40) for preference in preferences)
    return tuple({text.casefold(): text for text in phrases if text}.values())[:5]
