"""`python -m minifast plugins`: what is installed, from where."""

from __future__ import annotations

import argparse
import sys

from .plugins import available, unread


def main(arguments: list[str] | None = None) -> None:
    """Runs a command.

    Examples:
        >>> main(["plugins"])  # doctest: +ELLIPSIS
        callback  ActivationStats   minifast 0...
    """
    parser = argparse.ArgumentParser(prog="python -m minifast", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("plugins", help="list the installed callbacks, metrics and steppers")
    parser.parse_args(arguments)
    found = available()
    names = max((len(plugin.name) for plugin in found), default=0)
    origins = max((len(plugin.distribution) for plugin in found), default=0)
    for plugin in found:
        place = f"{plugin.kind:8}  {plugin.name:{names}}  {plugin.distribution:{origins}}"
        print(f"{place}  {plugin.summary()}".rstrip())
    for problem in unread():
        print(f"warning: {problem}", file=sys.stderr)


if __name__ == "__main__":
    main()
