"""Finds the order number in what a customer wrote, or finds that there is no telling."""

import re

__all__ = ["order_number"]

_NAMED = re.compile(
    r"""(?: \b(?: order | ord | invoice | contract | reference | ref | shipment | parcel | ticket )s?
            (?: \s* (?: number | numbers | no | nr | id ) )?
          | \b(?: number | no | nr )
          | \# )
        [\s.:#-]{0,3} (\d{4,6}) \b (?! [.,]\d )""",
    re.IGNORECASE | re.VERBOSE,
)

# Bare numbers, but no prices (129.00, 1200 euros, $1500), no groups of a phone number, nothing glued to other signs.
_BARE = re.compile(
    r"""(?<! [\w.,/€$£+-] ) (?<! [€$£]\s ) (?<! \d\s )
        (\d{4,6}) \b
        (?! [.,/:-]\d | \s?\d | \s? (?: € | \$ | £ | % | eur | usd | gbp | dollar | pound | cent ) )""",
    re.IGNORECASE | re.VERBOSE,
)
_YEAR = re.compile(r"^(?:19|20)\d\d$")


def order_number(text: str) -> str | None:
    """Return the one order number in the text: a number called so, else a lone bare one.

    None when there is none, and also when there are several different ones: acting on the wrong order is dearer than
    asking.
    """
    named = set(_NAMED.findall(text))
    found = named or {number for number in _BARE.findall(text) if not _YEAR.match(number)}
    return found.pop() if len(found) == 1 else None
