"""What a package's metadata says about its licence, and which licences are allowed.

Metadata has up to three places: `License-Expression` (PEP 639, SPDX), `License` (any text) and classifiers. The first
that says something that is known decides; what none of them says is not guessed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

ALLOWED = frozenset(
    {
        "0BSD", "Apache-2.0", "BSD", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0", "CNRI-Python", "HPND", "ISC",
        "MIT", "MIT-0", "MIT-CMU", "MPL-2.0", "PSF-2.0", "Python-2.0", "Unlicense", "Zlib", "ZPL-2.1", "bzip2-1.0.6",
    }
)  # fmt: skip
"""Those that let the package be used, changed and passed on beside ours; MPL-2.0 asks for changes of its own files."""
EXCEPTIONS = {"LLVM-exception", "GCC-exception-3.1"}
"""What is added by WITH, and takes nothing away."""

_TEXTS = {
    "apache": "Apache-2.0", "apache 2.0": "Apache-2.0", "apache 2": "Apache-2.0", "apache license 2.0": "Apache-2.0",
    "apache 2.0 license": "Apache-2.0", "apache license, version 2.0": "Apache-2.0", "apache-2": "Apache-2.0",
    "apache software license": "Apache-2.0", "osi approved :: apache software license": "Apache-2.0",
    "mit license": "MIT", "the mit license": "MIT", "isc license": "ISC", "bsd": "BSD", "bsd license": "BSD",
    "bsd 3-clause": "BSD-3-Clause", "3-clause bsd license": "BSD-3-Clause", "new bsd": "BSD-3-Clause",
    "bsd 2-clause": "BSD-2-Clause", "psf": "PSF-2.0", "mpl 2.0": "MPL-2.0",
}  # fmt: skip
_CLASSIFIERS = {
    "Apache Software License": "Apache-2.0",
    "BSD License": "BSD",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
    "The Unlicense (Unlicense)": "Unlicense",
    "zlib/libpng License": "Zlib",
}
"""`BSD` is none of SPDX's: the classifier does not say which it is."""
_OSI = "License :: OSI Approved :: "
_WORD = re.compile(r"\(|\)|[A-Za-z0-9.+:-]+")
_EXPRESSION = re.compile(r"[A-Za-z0-9.+-]+( (AND|OR|WITH) [A-Za-z0-9.+-]+)*|\(.*\)")


def licence(expression: str | None, text: str | None, classifiers: Sequence[str]) -> str | None:
    """Returns a package's licence as an SPDX expression, or `BSD`, or the name that it gives; None if it gives none.

    Args:
        expression: `License-Expression`.
        text: `License`.
        classifiers: All of them.
    """
    if expression:
        return expression
    short = " ".join((text or "").split())
    if known := _TEXTS.get(short.lower()):
        return known
    if short and _EXPRESSION.fullmatch(short) and is_allowed(short):
        return short
    named = [entry.removeprefix(_OSI) for entry in classifiers if entry.startswith(_OSI)]
    if named:
        return " AND ".join(_CLASSIFIERS.get(name, name) for name in named)
    # A whole licence's text is no name.
    return short if 0 < len(short) <= 60 else None


def is_allowed(expression: str) -> bool:
    """Returns whether an SPDX expression can be met by allowed licences alone."""
    words = _WORD.findall(expression)
    if "".join(words) != "".join(expression.split()):
        return False
    try:
        allowed = _any(words)
    except IndexError:
        return False
    return allowed and not words


def _any(words: list[str]) -> bool:
    """Returns the value of what `words` begin with, and takes it away: OR binds least, AND more, WITH most."""
    allowed = _all(words)
    while words and words[0] == "OR":
        words.pop(0)
        other = _all(words)
        allowed = allowed or other
    return allowed


def _all(words: list[str]) -> bool:
    allowed = _one(words)
    while words and words[0] == "AND":
        words.pop(0)
        other = _one(words)
        allowed = allowed and other
    return allowed


def _one(words: list[str]) -> bool:
    word = words.pop(0)
    if word == "(":
        allowed = _any(words)
        return words.pop(0) == ")" and allowed
    allowed = word in ALLOWED
    if words and words[0] == "WITH":
        words.pop(0)
        return words.pop(0) in EXCEPTIONS and allowed
    return allowed


def of_report(metadata: Mapping[str, object]) -> str | None:
    """Returns the licence by a package's metadata as JSON (PEP 566), such as pip's report has."""
    expression, text, classifiers = (metadata.get(key) for key in ("license_expression", "license", "classifier"))
    return licence(
        expression if isinstance(expression, str) else None,
        text if isinstance(text, str) else None,
        [str(entry) for entry in classifiers] if isinstance(classifiers, list) else [],
    )
