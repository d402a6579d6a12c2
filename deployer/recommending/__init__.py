"""Which format for which environment: a comparison and an environment in, an answer out. Pure.

`measured` and `estimated` say what a format would do there, `limits` what it would miss, `choice`
ranks what is left, `doubts` says how sure that is, `words` tells it to people.
"""

from deployer.recommending.choice import recommend
from deployer.recommending.records import Recommendation
from deployer.recommending.words import basis_lines, describe, ruled_out_rows

__all__ = ["Recommendation", "basis_lines", "describe", "recommend", "ruled_out_rows"]
