"""Two stored results of the same work: what differs around them, and which figures became worse.

read_stored(path)          a stored comparison or load test
differences(old, new)      workload, model, machine, versions: read these first
incomparable(found)        those of them that make figures incomparable
changes(old, new)          every figure of every format, judged
regressed(found)           those that became worse
"""

from deployer.regression.differences import Difference, differences, incomparable
from deployer.regression.rule import Change, Verdict, changes, judged, regressed
from deployer.regression.stored import Stored, read_stored

__all__ = [
    "Change", "Difference", "Stored", "Verdict", "changes", "differences", "incomparable", "judged",
    "read_stored", "regressed",
]  # fmt: skip
