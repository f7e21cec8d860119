"""Faults, attacks and mistakes on purpose; `docs/guarantees.md` tells what they show.

pytest tests/faults -m faults      the sizes that CI runs
pytest tests/faults -m full        the full sizes
"""
