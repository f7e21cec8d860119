"""Holds that no page of the built site makes a reader's browser ask another host for anything."""

import re
import sys
from pathlib import Path

ELSEWHERE = r"""["']?((?:https?:)?//[^"' >]+)"""
LOADS = re.compile(
    rf"<(?:script|img|iframe|source)[^>]+src={ELSEWHERE}"
    r"""|<link[^>]+rel=["']?(?:stylesheet|preload|preconnect|icon)[^>]+"""
    rf"href={ELSEWHERE}"
)

pages = sorted(Path(sys.argv[1]).rglob("*.html"))
found = [
    f"{page}: {a or b}"
    for page in pages
    for a, b in LOADS.findall(page.read_text(encoding="utf-8"))
]
print(f"{len(pages)} pages, {len(found)} requests to other hosts")
sys.exit("\n".join(found) if found or not pages else 0)
