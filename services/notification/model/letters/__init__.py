"""Writes letters: the subject, text part, HTML part and short text of each kind of mail, from templates.

A kind is one file a language, `templates/<language>/<kind>.jinja`, of these blocks; its contents are written once for both parts,
by the macros of `parts.html.jinja` and `parts.txt.jinja`:

- `subject`: the mail's subject, and the title of the notice in the application;
- `short`: what the notice in the application says;
- `preheader`: what mailboxes show beside the subject. Without it: the short text;
- `heading`: the first line of the HTML part. Without it: the subject;
- `action`: the words of the link to its page, on its button and in digests, if it leads to one;
- `content`: what stands between the greeting and the end.

A language is a folder. A kind that the folder lacks is written in the default language, wholly: no letter mixes languages. English
has all kinds.
"""

from .brand import Brand
from .values import Facts, Link, by_actors, headed
from .writing import Letters, kinds, languages

__all__ = ["Brand", "Facts", "Letters", "Link", "by_actors", "headed", "kinds", "languages"]
