"""Sentences with marked tokens: by colour, by lines for whoever can't tell colours apart, and in words."""

from collections.abc import Sequence

from mlpt.reporting.html.parts import Passage, Token, escape


def passage_html(passage: Passage) -> str:
    """One text with its words below it."""
    text = "".join(map(_token, passage.tokens)).strip()
    return f'<blockquote class="passage">{text}</blockquote><p class="about">{escape(passage.told)}</p>'


def panel_html(label: str, passages: Sequence[Passage]) -> str:
    """The texts under one tab; on paper, where there are no tabs, with its label."""
    return f'<h4 class="paper">{escape(label)}</h4>{"".join(map(passage_html, passages))}'


def key_html(key: Sequence[tuple[Token, str]]) -> str:
    """What the marks mean."""
    items = "".join(f"<li>{_token(token).strip()} {escape(meaning)}</li>" for token, meaning in key)
    return f'<ul class="key">{items}</ul>' if items else ""


def _token(token: Token) -> str:
    text = escape(token.text.lstrip(" "))
    space = " " if token.text.startswith(" ") else ""
    classes = [f"h{token.level}"] if token.level else []
    if token.made is not None:
        classes.append("masked" if token.masked else "other")
    classes += ["guided"] if token.guided else []
    if token.made is not None and not token.masked:
        text = f"<del>{text}</del><ins>{escape(token.made.strip())}</ins>"
    elif token.masked:
        text = f"<del>{text}</del>"
    if token.wanted is not None:
        classes.append("asked")
        text += f"<sub>{escape(token.wanted.strip())}</sub>"
    if not classes and not token.tip:
        return space + text
    tip = f' title="{escape(token.tip)}"' if token.tip else ""
    return f'{space}<mark class="{" ".join(classes) or "h0"}"{tip}>{text}</mark>'
