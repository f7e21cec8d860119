"""Holds that no page of the built site makes a reader's browser ask another host for anything."""

import re
import sys
from pathlib import Path

LOADS = re.compile(
    r"""<(?:script|img|iframe|source)[^>]+src=["']?((?:https?:)?//[^"' >]+)"""
    r"""|<link[^>]+rel=["']?(?:stylesheet|preload|preconnect|icon)[^>]+href=["']?((?:https?:)?//[^"' >]+)"""
)

pages = sorted(Path(sys.argv[1]).rglob("*.html"))
found = [
    f"{page}: {a or b}"
    for page in pages
    for a, b in LOADS.findall(page.read_text(encoding="utf-8"))
]
print(f"{len(pages)} pages, {len(found)} requests to other hosts")
sys.exit("\n".join(found) if found or not pages else 0)
