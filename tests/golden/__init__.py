"""Today's behaviour, kept in files: what the reports print, how runs are identified, what tiny runs measure.

``python -m pytest tests/golden --update-golden`` writes the files again where they differ (with ``-m ''`` those of slow
tests too). A change on purpose is then a difference that a reviewer reads.
"""
