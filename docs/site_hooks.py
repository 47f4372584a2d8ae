"""MkDocs hook: links to files of the repository that aren't pages go to GitHub."""

import posixpath
import re
from typing import Any

_LINK = re.compile(r"(\]\()(?!https?://|#|mailto:)([^)#\s]+)(#[^)\s]*)?(\))")


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Replace relative links that leave docs/ by links into the repository."""
    base = posixpath.dirname(page.file.src_uri)

    def replaced(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join("docs", base, match[2]))
        if target.startswith("docs/"):
            return match[0]
        return f"{match[1]}{config.repo_url}/blob/main/{target}{match[3] or ''}{match[4]}"

    return _LINK.sub(replaced, markdown)
