"""Parts of regular expressions that take time in step with what they read, and no more.

A repetition of alternatives is unrolled: then there is one way to match, and nothing to go back to. It is not possessive:
Python before 3.11.5, Debian 12's among them, goes wrong where a possessive group fails in its midst, and matches what should not be
(python/cpython#106052).
"""


def runs(one: str, other: str) -> str:
    """What `(?:one|other)*` means. `one` is a set of characters; `other` begins with a character beyond it."""
    return rf"(?:{one}*+(?:{other}{one}*+)*)"


QUOTED = '"' + runs(r'[^"\\]', r"\\.") + '"'
"""RFC 5321 §4.1.2, RFC 5322 §3.2.4: a quoted string."""
